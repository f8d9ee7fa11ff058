"""A toy stage and a fast trainer for it, for tests of callbacks."""

from pathlib import Path

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from callbacks.checkpointing import AtomicCheckpointIO
from callbacks.progress import Progress


class Toy(LightningModule):
    """A student that moves on even steps, and a teacher that is asked twice."""

    def __init__(self, poison_at: int | None = None, always: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(3, 3)
        self.critic = nn.Linear(3, 3)
        self.__dict__["teacher"] = nn.Linear(3, 3).requires_grad_(False)
        self.poison_at, self.always = poison_at, always
        self.student_updated = True
        self.losses: list[float] = []

    def networks(self):
        return {"student": self.student, "critic": self.critic, "teacher": self.teacher}

    def training_step(self, batch, batch_idx):
        self.student_updated = self.always or self.global_step % 2 == 0
        network = self.student if self.student_updated else self.critic
        target = 0.5 * (self.teacher(batch["x"]) + self.teacher(-batch["x"]))
        loss = (network(batch["x"]) - target).square().mean()
        if self.global_step == self.poison_at:
            loss = loss * float("nan")
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([*self.student.parameters(), *self.critic.parameters()], lr=0.1)

    def sample(self, text, keys):
        mean = self.student.weight.detach().mean()
        return torch.zeros(len(keys), 4, 1, 8, 8) + mean


class Batches(LightningDataModule):
    """Batch number i is a function of i; the position is part of the checkpoint."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps, self.first = steps, 0

    def train_dataloader(self):
        def batch(number):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
            return {"key": [f"{number}/{i}" for i in range(4)], "x": x}

        return _Numbered([batch(number) for number in range(self.first, self.steps)])

    def state_dict(self):
        return {"position": self.trainer.global_step}

    def load_state_dict(self, state_dict):
        self.first = state_dict["position"]


class _Numbered(list):
    """An iterable Lightning takes as a loader."""


class Do(Callback):
    """Runs a function after step number `step`."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.action()


def fit(folder: Path, callbacks, module=None, steps=10, resume=False, data=None, **settings):
    module = module or Toy()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=1,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(one, Progress) for one in callbacks),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=folder,
        **{"logger": False} | settings,
    )
    last = folder / "last.ckpt" if resume else None
    trainer.fit(module, datamodule=data or Batches(steps), ckpt_path=last)
    return module, trainer


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))
