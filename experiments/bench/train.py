"""A training step of each stage, by its own class under a real Trainer, on one device.

A ``DryRun`` records a stage's network calls. Where updates alternate between networks, as in
distribution matching, each kind of step is timed. The exit step of the rollout is drawn by chance:
here outcomes come in turn (``balanced.py``), and time and operations are expectations. Optimizer
and student's average are the run's, on one device, where nothing is sharded or exchanged; loading
data is not timed. A step is one micro-batch (``launch.batch_per_device`` clips); with micro-batches
of one, a batch of 64 on one device is 64 of them and one update.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from callbacks.student_ema import StudentEMA
from experiments.bench import count
from experiments.bench.balanced import balanced
from experiments.bench.clock import Protocol, Timing, forget_peak, now, peak_memory
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.row import Row, Task
from experiments.bench.sizes import NetworkSize
from experiments.checkpoints.networks import ROLES
from experiments.launch.stages import asked_of_networks, build_stage
from experiments.runs.files import load_recipe
from experiments.runs.recipe import Resolver, Run, recipes
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.ranges import Checkpointing
from lightning_modules.training.dry_run import Case, Chosen, DryRun, example_batch, learning
from lightning_modules.training.gated_adamw import GatedAdamW

FEW_STEPS = 4
Roles = tuple[str, ...]  # of the networks that learn in a step
log = logging.getLogger(__name__)


def bench(
    subject: Subject, protocol: Protocol, resolver: Resolver, settings: Mapping[str, Any]
) -> Iterator[Task]:
    """Training steps of all stages that start from another run's student; random networks."""
    library = resolver.library
    for name in recipes(library, "fit"):
        given = "student" in load_recipe(library.recipes, name)["needs"]
        if given and not resolver.has_sections_of(name):
            log.info("train/%s: this scale has no budget for it", name)
        elif given:
            run = resolver.resolve(name, settings)
            if run.recipe["fit"]["steps"]:
                yield Task(f"train/{name}", partial(step_rows, subject, protocol, run))


def step_rows(subject: Subject, protocol: Protocol, run: Run, peak: Peak) -> Iterator[Row]:
    """A row for each kind of step of a stage, distinguished by the networks it updates."""
    name, recipe = run.recipe["recipe"], timed(run.recipe)
    asked, configs = asked_of_networks(recipe), networks_of(run, subject)
    module = stage(subject, recipe, asked, configs)
    clips = recipe["launch"].get("batch_per_device") or recipe["fit"]["batch"]
    watch = Watch(subject.device, protocol, asked.steps)
    module.randomness = watch.randomness(module)
    _train(module, subject, watch, clips, recipe)
    checkpointing = recipe["launch"].get("gradient_checkpointing", False)
    for roles in asked.steps:
        done, needed = step_work(subject, asked, roles, configs, clips, checkpointing)
        turn = " and ".join(roles) if len(asked.steps) > 1 else None
        yield Row(
            f"train/{name}" + (f"/{turn}" if turn else ""),
            watch.timing(roles),
            sum(map(peak.least_seconds, done)),
            sum(done, Work()),
            model=needed,
            more={"clips": clips, "recipe": name, "turn": turn}
            | {"warmup_s": watch.warmup_seconds(roles)}
            | watch.by_outcome(roles)
            | _as_run(recipe)
            | _stored(module),
        )


def timed(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with one critic step per student step, since times are per step."""
    own = recipe["stage"]
    return {**recipe, "stage": own | ({"critic_steps": 1} if "critic_steps" in own else {})}


def networks_of(run: Run, subject: Subject) -> dict[str, Mapping[str, Any]]:
    """Configs of the networks that a run needs, by role, from the scale."""
    return {role: _config(run, role, subject.tree) for role in ROLES if role in run.recipe["needs"]}


def step_work(
    subject: Subject,
    asked: DryRun,
    roles: tuple[str, ...],
    configs: Mapping[str, Mapping[str, Any]],
    clips: int,
    checkpointing: Checkpointing,
) -> tuple[list[Work], float]:
    """Mean work of a device in a step, call by call, and the model's operations.

    Args:
        asked: recorded calls of the stage's networks.
        roles: of the networks updated in the step.
        configs: of the networks, by role.
        clips: per micro-batch.
        checkpointing: of trained networks' activations.
    """
    sizes = {role: NetworkSize.of(config) for role, config in configs.items()}
    done, needed = [count.optimizer(sizes[role]) for role in roles], 0.0
    for (role, call), times in asked.expected(roles).items():
        forward = subject.work(call, sizes[role], clips) * times
        done.append(forward * count.passes(call))
        needed += done[-1].operations
        again = checkpointing if asked.networks[role].trained else False
        done.append(subject.recomputed(call, sizes[role], clips, again) * times)
    return done, needed


def stage(
    subject: Subject,
    recipe: dict[str, Any],
    asked: DryRun,
    configs: Mapping[str, Mapping[str, Any]],
) -> LightningModule:
    """The recipe's stage around random networks."""
    frozen = {role: not asked.networks[role].trained for role in configs}
    largest = sorted(configs, key=lambda role: -frozen[role])  # first: it is drawn in float32
    networks = {role: subject.network(configs[role], frozen[role]) for role in largest}
    for role, network in networks.items():
        checkpointing = recipe["launch"].get("gradient_checkpointing", False)
        network.gradient_checkpointing = not frozen[role] and checkpointing
        if recipe["launch"].get("compile", False) and subject.device.type == "cuda":
            network.compile_blocks()
    times = time_grid(FEW_STEPS, recipe["stage"]["shift"])[:-1].tolist()
    return build_stage(recipe, networks, negative=subject.prompt()[0], times=times)


def _config(run: Run, role: str, tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A network's config: of the run that created it; for a folder, the scale's."""
    if behind := run.needs.get(role):
        return behind.recipe.get("network") or _config(behind, "student", tree)
    where, score = run.recipe["needs"][role], str(tree["real_score"].get("folder"))
    is_score = where in (score, str(Path(score).absolute()))
    return tree["score_network" if is_score else "network"]


def _stored(module: LightningModule) -> dict[str, Any]:
    """Which kind of trajectories a stage reads, and the number of stored states per clip."""
    if "trajectory" not in module.fields:
        return {}
    return {"reads": module.past, "states": FEW_STEPS + 1 + ("latents" in module.fields)}


def _as_run(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of the recipe is here, and what is not."""
    launch, fit = recipe["launch"], recipe["fit"]
    devices = launch.get("nodes", 1) * launch.get("devices", 1)
    return {
        "optimizer": GatedAdamW.__name__,
        "student_ema_decay": fit["ema_decay"],
        "left_out": {"strategy": launch.get("strategy", "auto"), "devices": devices},
    }


class Watch(Callback):
    """Seconds of every step after the warm-up, by the networks it updates.

    Args:
        device: that is timed.
        protocol: its repetitions are rounded up to whole rounds of the outcomes that are timed.
        cases: the outcomes of chance, of each kind of step.
    """

    def __init__(
        self, device: torch.device, protocol: Protocol, cases: Mapping[Roles, Sequence[Case]]
    ) -> None:
        self.device, self.warmup = device, protocol.warmup
        self.cases = {roles: balanced(outcomes) for roles, outcomes in cases.items()}
        self.peak = 0
        self._repeats = protocol.repeats
        self._seconds: dict[Roles, list[float]] = defaultdict(list)
        self._first: dict[Roles, list[float]] = defaultdict(list)
        self._seen: dict[Roles, int] = defaultdict(int)

    def steps(self, roles: Roles) -> int:
        """Timed steps of a kind."""
        outcomes = len(self.cases[roles])
        return ceil(self._repeats / outcomes) * outcomes

    def randomness(self, module: LightningModule) -> Callable[[dict[str, Any]], Randomness]:
        """The stage's own, but that the outcomes of chance come in turn."""
        own = module.randomness

        def randomness(batch: dict[str, Any]) -> Randomness:
            roles = learning(module.networks(), module.trainer.optimizers[0])
            case = self.cases[roles][self._seen[roles] % len(self.cases[roles])]
            return Chosen(own(batch), lambda purpose, below: case.choices[purpose])

        return randomness

    def timing(self, roles: Roles) -> Timing:
        """Of a kind of step."""
        cases, seconds = self.cases[roles], self._seconds[roles][: self.steps(roles)]
        if len(cases) == 1:
            return Timing(tuple(seconds), self.peak)
        shares = zip(cases, self._medians(roles), strict=True)
        expected = sum(case.probability * median for case, median in shares)
        return Timing(tuple(seconds), self.peak, expected)

    def warmup_seconds(self, roles: Roles) -> list[float]:
        """Of the steps before the timed ones: where networks are compiled, mostly compiling."""
        return self._first[roles]

    def by_outcome(self, roles: Roles) -> dict[str, Any]:
        """What was decided, with its probability and the median of its seconds."""
        if len(self.cases[roles]) == 1:
            return {}
        shares = zip(self.cases[roles], self._medians(roles), strict=True)
        return {
            "outcomes": [
                {**case.choices, "probability": case.probability, "median_s": median}
                for case, median in shares
            ]
        }

    def _medians(self, roles: Roles) -> list[float]:
        """Of each outcome; the first timed step is of the outcome that followed the warm-up."""
        count, seconds = len(self.cases[roles]), self._seconds[roles][: self.steps(roles)]
        starts = [(case - self.warmup) % count for case in range(count)]
        return [median(seconds[start::count]) for start in starts]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.warmup * pl_module.update_cycle:
            forget_peak(self.device)
        self._start = now(self.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        seconds = now(self.device) - self._start
        turn = learning(pl_module.networks(), trainer.optimizers[0])
        log.info(
            "step %d of %d, which moves %s: %.3g s",
            *(trainer.global_step, trainer.max_steps, " and ".join(turn), seconds),
        )
        self._seen[turn] += 1
        if self._seen[turn] <= self.warmup:
            self._first[turn].append(seconds)
            return
        self._seconds[turn].append(seconds)
        self.peak = peak_memory(self.device)


def _train(
    module: LightningModule,
    subject: Subject,
    watch: Watch,
    clips: int,
    recipe: dict[str, Any],
) -> None:
    text = (subject.text_tokens, subject.tree["network"]["text_dim"])
    steps = module.update_cycle * (watch.warmup + max(map(watch.steps, watch.cases)))
    decay = recipe["fit"]["ema_decay"]
    averages = [StudentEMA(decay)] if decay else []  # before the watch, which times it
    batches = [
        example_batch(module.fields, clips, subject.shape, text, FEW_STEPS, name=f"clip-{step}")
        for step in range(steps)
    ]
    Trainer(
        accelerator="gpu" if subject.device.type == "cuda" else "cpu",
        devices=1,
        precision=subject.tree["precision"],
        max_steps=steps,
        max_epochs=1,
        gradient_clip_val=recipe["fit"]["clip_gradient"],
        callbacks=[*averages, watch],
        plugins=[LightningEnvironment()],  # else Lightning asks MPI, where mpi4py is installed
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    ).fit(module, DataLoader(batches, batch_size=None))
