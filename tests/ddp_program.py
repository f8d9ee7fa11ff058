"""Trains two stages on a shard set and writes what happened; Lightning starts it once per rank.

    python tests/ddp_program.py <shards> <output folder> <devices> <strategy>

Every rank writes its losses, the first one the weights.
"""

import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from minimal import network, stage

from datamodules.video import VideoDataModule
from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.teacher_forcing import TeacherForcing

STEPS = 8
STAGES = {
    "teacher_forcing": (
        TeacherForcing,
        {"text_dropout": 0.3, "intervals": 4, "guidance": 1.0},
    ),
    "asymmetric_dmd": (
        AsymmetricDMD,
        {
            "few_steps": 2, "first_few_steps": 4, "guidance": 2.0, "critic_learning_rate": 2e-3,
            "critic_steps": 2, "t_min": 0.02, "t_max": 0.98,
        },
    ),
}  # fmt: skip


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.seen.append(outputs["loss"].item())


def main(shards: str, output: str, devices: str, strategy: str) -> None:
    torch.set_num_threads(1)
    for name, (kind, own) in STAGES.items():
        if kind is AsymmetricDMD:
            own = own | {"teacher": network(2), "critic": network(3)}
        module, losses = stage(kind, learning_rate=1e-3, **own), Losses()
        data = VideoDataModule(shards, batch=4, steps=STEPS, seed=3, fields=list(kind.fields))
        trainer = Trainer(
            accelerator="cpu",
            devices=int(devices),
            strategy=strategy,
            max_steps=STEPS,
            max_epochs=1,
            gradient_clip_val=0.1,
            callbacks=[losses],
            logger=False,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, datamodule=data)
        to = Path(output)
        (to / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(losses.seen))
        if trainer.is_global_zero:
            torch.save(module.state_dict(), to / f"{name}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
