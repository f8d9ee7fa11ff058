"""A training step of each stage, by its own class under a real Trainer, on one device.

Distribution matching has two kinds of step, the student's turn and the critic's; both are timed.
Its student leaves its sampler at a step that chance chooses, so operations are those expected and
times vary. A step is one part of a batch (``launch.batch_per_device`` clips); a batch of 64 on one
device is 64 of them, and one update.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from experiments.bench import stage_work
from experiments.bench.clock import Protocol, Timing, forget_peak, now, peak_memory
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.report import Row, Task
from experiments.runs.recipe import Resolver
from experiments.runs.signature import bind, parameters_of
from lightning_modules import STAGES
from lightning_modules.diffusion.flow import time_grid

RECIPES = (
    "stage1_teacher_forcing",
    "stage2_self_forcing_ode",
    "stage2_causal_ode",
    "stage2_causal_cd",
    "stage2_causal_dmd",
    "stage3_asymmetric_dmd",
)
FEW_STEPS = 4


def bench(
    subject: Subject, peak: Peak, protocol: Protocol, resolver: Resolver, settings: dict[str, Any]
) -> Iterator[Task]:
    """Every stage's step, each with networks of its own."""
    for recipe in [resolver.resolve(name, settings).recipe for name in RECIPES]:
        name = f"train, {recipe['recipe']}"
        yield Task(name, partial(step_rows, subject, peak, protocol, recipe))


def step_rows(
    subject: Subject, peak: Peak, protocol: Protocol, recipe: dict[str, Any]
) -> Iterator[Row]:
    """A row for each kind of step that a stage has."""
    module = stage(subject, recipe)
    clips = recipe["launch"].get("batch_per_device") or recipe["fit"]["batch"]
    watch = Watch(subject.device, protocol.warmup)
    _train(module, subject, watch, clips, recipe, protocol)
    for turn, passes in stage_work.turns(recipe, subject).items():
        checkpointed = recipe["launch"].get("gradient_checkpointing", False)
        counted = [stage_work.cost(subject, one, clips, checkpointed) for one in passes]
        optimizer = stage_work.optimizer(subject)
        yield Row(
            f"train, {recipe['recipe']}" + (f", {turn}'s turn" if turn else ""),
            Timing(tuple(watch.seconds[turn]), watch.peak),
            sum(map(peak.least_seconds, [*counted, optimizer])),
            sum([*counted, optimizer], Work()),
            model=sum(stage_work.needed(subject, one, clips) for one in passes),
            more={"clips": clips, "recipe": recipe["recipe"], "turn": turn or None},
        )


def stage(subject: Subject, recipe: dict[str, Any]) -> LightningModule:
    """The recipe's stage around random networks of the scale's sizes."""
    own = dict(recipe["stage"])
    kind = getattr(import_module(STAGES[name := own.pop("class")]), name)
    tree = subject.tree
    if "critic_steps" in own:
        own["critic_steps"] = 1  # the turns alternate: as many of each
    score = name == "AsymmetricDMD"
    given = {
        "teacher": lambda: subject.network(tree["score_network" if score else "network"]),
        "student": lambda: subject.network(tree["network"], frozen=False),
        "critic": lambda: subject.network(tree["network"], frozen=False),
        "negative": lambda: subject.prompt()[0],
        "seed": lambda: 0,
        "times": lambda: time_grid(FEW_STEPS, own["shift"])[:-1].tolist(),
    }  # the largest first: it is drawn in float32
    wanted = parameters_of(kind)
    made = {role: make() for role, make in given.items() if role in wanted}
    module = kind(**made, **bind(kind, own, set(made), "stage"))
    if recipe["launch"].get("gradient_checkpointing", False):
        for network in module.networks().values():
            network.gradient_checkpointing = True
    return module


class Watch(Callback):
    """Seconds of every step after the warm-up, by whose turn it is."""

    def __init__(self, device: torch.device, warmup: int) -> None:
        self.device, self.warmup = device, warmup
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peak = 0
        self._seen: dict[str, int] = defaultdict(int)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.turn = _turn(pl_module, trainer.global_step)
        if self._seen[self.turn] == self.warmup and not self.seconds:
            forget_peak(self.device)
        self._start = now(self.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        seconds = now(self.device) - self._start
        self._seen[self.turn] += 1
        if self._seen[self.turn] > self.warmup:
            self.seconds[self.turn].append(seconds)
            self.peak = peak_memory(self.device)


def _turn(module: LightningModule, step: int) -> str:
    """``student`` or ``critic`` where a stage trains both, else nothing."""
    if not hasattr(module, "critic"):
        return ""
    return "critic" if step % 2 else "student"


def _train(
    module: LightningModule,
    subject: Subject,
    watch: Watch,
    clips: int,
    recipe: dict[str, Any],
    protocol: Protocol,
) -> None:
    kinds = 2 if hasattr(module, "critic") else 1
    steps = kinds * (protocol.warmup + protocol.repeats)
    batches = [_batch(module, subject, clips, step) for step in range(steps)]
    Trainer(
        accelerator="gpu" if subject.device.type == "cuda" else "cpu",
        devices=1,
        precision=subject.tree["precision"],
        max_steps=steps,
        max_epochs=1,
        gradient_clip_val=recipe["fit"]["clip_gradient"],
        callbacks=[watch],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    ).fit(module, DataLoader(batches, batch_size=None))


def _batch(module: LightningModule, subject: Subject, clips: int, step: int) -> dict[str, Any]:
    """Random clips; the same ones in every step, under new names."""
    generator = torch.Generator().manual_seed(0)
    width = subject.tree["network"]["text_dim"]
    shapes = {
        "latents": subject.shape,
        "text": (subject.text_tokens, width),
        "trajectory": (FEW_STEPS + 1, *subject.shape),
    }
    arrays = {
        name: torch.randn(clips, *shapes[name], generator=generator) for name in module.fields
    }
    return {"key": [f"clip-{step}-{row}" for row in range(clips)], **arrays}
