"""Trains stages under a strategy and writes what happened; every rank runs it.

    python tests/deepspeed_program.py <shards> <output folder> <cases, JSON>

A case is {name, stage, strategy, zero_stage, parts, stop, precision, checkpointing, resume}. All
run one after the other in one group of processes, since starting one costs more than a tiny fit.
Every rank writes a JSON of its losses and of what moved; the first one writes the weights.
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import asked
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from minimal import batch, network, stage
from safetensors.torch import save_file

from callbacks.checkpointing import AtomicCheckpointIO, Checkpoint
from callbacks.not_finite import StopOnNaN
from callbacks.run_record import RunRecord
from callbacks.student_ema import StudentEMA
from datamodules.video import VideoDataModule
from experiments.checkpoints.networks import ROLES
from experiments.launch.hardware import Launch
from experiments.launch.stages import stage_class
from experiments.launch.strategies import parallel
from experiments.runs.recipe import recipes, resolve
from experiments.runs.signature import parameters_of
from lightning_modules import ALONE
from lightning_modules.networks.wan.precision import to_bfloat16
from lightning_modules.training.sharding import local_shard
from lightning_modules.training.stage import Stage

STEPS, BATCH, CRITIC_STEPS, CLIP, STATES, SAMPLED_AT = 7, 4, 2, 0.02, 4, 4
SETTINGS = asked.SETTINGS | {
    "text_dropout": 0.3, "intervals": 8, "guidance": 2.0, "decay": 0.9, "steps_per_link": 2,
    "few_steps": 2, "noisy_from": 1, "critic_learning_rate": 2e-3, "critic_steps": CRITIC_STEPS,
    "times": [1.0, 0.9, 0.75, 0.4],
}  # fmt: skip
SCHEDULED = {"CausalCD": {"schedule": "cosine", "warmup_steps": 2}}


def of_stage(kind: type) -> tuple[type, dict, tuple[str, ...]]:
    """A stage, what it takes beside what all take, and the roles of its other networks."""
    takes = [name for name in parameters_of(kind) if name not in parameters_of(Stage)]
    roles = tuple(role for role in ROLES if role in takes)
    own = {name: SETTINGS[name] for name in takes if name not in roles}
    return kind, own | SCHEDULED.get(kind.__name__, {}), roles


def trained_by_recipes() -> dict[str, tuple]:
    """Every stage that a recipe trains and that several devices can train."""
    found = {}
    for name in recipes(verb="fit"):
        recipe = resolve(name, "tiny").recipe
        if recipe["fit"]["steps"] and recipe["stage"]["class"] not in ALONE:
            kind = stage_class(recipe)
            found[kind.__name__] = of_stage(kind)
    return found


STAGES = trained_by_recipes()
LONGER = ("TeacherForcing", "CausalCD")  # of those without a critic: they are interrupted, too


def steps_of(name: str) -> int:
    """Updates of a stage: a few rounds of those that take turns, and as many of some others."""
    return STEPS if name in LONGER or "critic" in STAGES[name][2] else SAMPLED_AT


def batch_of_two() -> dict:
    return batch(2, seed=5)


class Watch(Callback):
    """Losses, the order of forwards, and which network every step has moved."""

    def __init__(self) -> None:
        self.seen = {"losses": [], "forwards": [], "moved": [], "steps": [], "norms": []}
        self.seen["autocast"] = []
        self.sampled: torch.Tensor | None = None

    def on_train_start(self, trainer, module) -> None:
        self.seen["held"] = {
            role: sum(local_shard(p).numel() for p in net.parameters())
            for role, net in module.networks().items()
        }
        for role, net in module.networks().items():
            net.register_forward_hook(lambda *_, role=role: self._note(role, module))

    def _note(self, role, module) -> None:
        self.seen["forwards"].append(role)
        if torch.is_grad_enabled():
            self.seen["autocast"].append(torch.is_autocast_enabled(module.device.type))

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self._before = {role: self._shares(module, role) for role in self._trained(module)}

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.seen["losses"].append(outputs["loss"].item())
        self.seen["steps"].append(trainer.global_step)
        self.seen["moved"].append(
            [
                role
                for role, before in self._before.items()
                if any(map(torch.ne, before, self._shares(module, role)))
            ]
        )
        if trainer.global_step == SAMPLED_AT and self.sampled is None:  # a panel is drawn so
            (ema,) = (c for c in trainer.callbacks if isinstance(c, StudentEMA))
            with ema.swapped(module):
                self.sampled = module.sample(batch_of_two()["text"], ["a", "b"])
        norms = [v.item() for k, v in trainer.logged_metrics.items() if "grad_norm" in k]
        self.seen["norms"].append(norms)

    @staticmethod
    def _trained(module) -> list[str]:
        return [role for role in ("student", "critic") if hasattr(module, role)]

    @staticmethod
    def _shares(module, role) -> list[torch.Tensor]:
        """A number a parameter; of this rank's share."""
        parameters = getattr(module, role).parameters()
        return [local_shard(parameter).double().pow(2).sum() for parameter in parameters]


class StopAt(Checkpoint):
    """Asks the run to stop after a step, on the last rank only, as a signal to it would."""

    def __init__(self, path, step) -> None:
        super().__init__(path)
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        last = trainer.global_rank == trainer.world_size - 1
        if last and trainer.global_step + 1 == self.step:
            self._signal = signal.SIGTERM


PLACE = {name: os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK") if name in os.environ}


def fit(case: dict, shards: str, folder: Path, resume=None, stop=0) -> tuple:
    os.environ.update(PLACE)  # Lightning forgets it after a fit
    steps, (kind, own, roles) = steps_of(case["stage"]), STAGES[case["stage"]]
    nets = {role: network(2 + n) for n, role in enumerate(roles)}
    module = stage(kind, learning_rate=1e-3, weight_decay=0.1, **own, **nets)
    if case.get("precision") == "bf16-mixed":
        to_bfloat16(module.teacher)
    for net in (module.student, getattr(module, "critic", module.student)):
        net.gradient_checkpointing = case.get("checkpointing", False)
    parts = case.get("parts", 1)
    data = VideoDataModule(
        shards, batch=BATCH, steps=steps, seed=3, micro_batches=parts, fields=list(kind.fields)
    )
    world = int(PLACE.get("WORLD_SIZE", 1))
    accelerator = case.get("accelerator", "cpu")
    launch = Launch(
        accelerator=accelerator, devices=world, strategy=case["strategy"],
        zero_stage=case.get("zero_stage", 2), timeout_s=60,
    )  # fmt: skip
    watch, ema, record = Watch(), StudentEMA(0.5, 1), RunRecord()
    callbacks = [watch, ema, record, StopOnNaN()]
    callbacks += [StopAt(folder / f"{case['name']}.ckpt", stop)] if stop else []
    trainer = Trainer(
        accelerator=accelerator, devices=world, max_steps=steps, max_epochs=1,
        gradient_clip_val=CLIP, accumulate_grad_batches=parts, callbacks=callbacks, logger=False,
        log_every_n_steps=1,
        use_distributed_sampler=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        **parallel(module, launch, case.get("precision", "32-true")),
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module, ema, watch, trainer


def write(module, ema, watch, trainer, name: str, folder: Path) -> None:
    seen = watch.seen
    (folder / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(seen))
    if trainer.is_global_zero:
        weights = {f"student.{k}": v for k, v in module.student.state_dict().items()}
        weights |= {f"evaluated.{k}": v for k, v in module.evaluated.state_dict().items()}
        weights |= {f"ema.{k}": v for k, v in ema.ema_state_dict().items()}
        if watch.sampled is not None:
            weights["sampled"] = watch.sampled
        copies = {k: v.detach().clone().contiguous() for k, v in weights.items()}
        save_file(copies, folder / f"{name}.safetensors")
        module.hand_off(folder / name)


def main(shards: str, output: str, cases: str) -> None:
    torch.set_num_threads(1)
    folder = Path(output)
    for case in json.loads(cases):
        if case.get("resume"):
            try:
                fit(case, shards, folder, resume=case["resume"])
            except ValueError as error:
                (folder / f"{case['name']}.txt").write_text(str(error))
            continue
        write(*fit(case, shards, folder), case["name"], folder)
        if case.get("stop"):
            fit(case, shards, folder, stop=case["stop"])
            resumed = fit(case, shards, folder, resume=folder / f"{case['name']}.ckpt")
            write(*resumed, f"{case['name']}-resumed", folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
