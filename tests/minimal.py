"""The smallest networks, batches and stages, and velocities written with nothing but loops.

Latents are [4, 4, 4, 4] (frames, channels, height, width), prompts [3, 8]; a network has one layer
of width 24. Tests compute what they expect from the draws of `Randomness` and from `conditioned`,
which runs one block of one clip at a time and shares no code with the stages.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from callbacks.checkpointing import AtomicCheckpointIO
from lightning_modules.networks import Wan

SHAPE = (4, 4, 4, 4)
TEXT = (3, 8)
SHIFT = 5.0  # not 1, which would hide a forgotten warp
PARTITIONS = ["framewise", 2, [1, 3]]
SIZES = {"framewise": [1, 1, 1, 1], "2": [2, 2], "[1, 3]": [1, 3]}


def network(seed: int, std: float = 0.2, channels: int = SHAPE[1], text: int = TEXT[1]) -> Wan:
    """A random network with no zero anywhere, so that nothing is equal by accident."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Wan(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=channels,
            out_channels=channels,
            text_dim=text,
            ffn_dim=32,
            num_layers=1,
            freq_dim=16,
        )
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=std)
    return net


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(count: int = 3, states: int = 0, seed: int = 0) -> dict:
    """Clips with keys; with `states` noisy states of a trajectory and its end."""
    made = {
        "key": [f"clip-{seed}-{number}" for number in range(count)],
        "latents": draw(seed, count, *SHAPE),
        "text": draw(seed + 1, count, *TEXT),
    }
    return made | ({"trajectory": draw(seed + 2, count, states + 1, *SHAPE)} if states else {})


def stage(kind: type, blocks="framewise", seed: int = 1, student: nn.Module | None = None, **own):
    """A stage with the settings that all share."""
    shared = {
        "negative": draw(9, *TEXT),
        "clip_shape": list(SHAPE),
        "shift": SHIFT,
        "learning_rate": 1e-3,
        "betas": [0.9, 0.999],
        "weight_decay": 0.01,
    }
    student = network(1) if student is None else student
    return kind(student=student, blocks=blocks, seed=seed, **(shared | own))


class Repeat(LightningDataModule):
    """`steps` times the same batch; a resumed run goes on at the next."""

    def __init__(self, batch: dict, steps: int) -> None:
        super().__init__()
        self.batch, self.steps, self.first = batch, steps, 0

    def train_dataloader(self):
        return _Loader(self.batch, self.steps, self.first)

    def state_dict(self):
        return {"position": self.trainer.global_step}

    def load_state_dict(self, state):
        self.first = state["position"]


class _Loader:
    """What is left, though its length is the whole run's, as Lightning counts."""

    def __init__(self, batch: dict, steps: int, first: int) -> None:
        self.batch, self.steps, self.first = batch, steps, first

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        return iter([self.batch] * (self.steps - self.first))

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing: `Repeat` knows where the run stands. Without this Lightning warns."""


class SaveAndStop(Callback):
    """Ends a run in the middle, leaving a checkpoint."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *rest) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)
            trainer.should_stop = True


def train(module, batch: dict, steps: int, resume=None, **settings) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=1,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        **{"logger": False} | settings,
    )
    trainer.fit(module, datamodule=Repeat(batch, steps), ckpt_path=resume)
    return trainer


# -- the same mathematics, by loops --------------------------------------------------------------


def warped(u: float, by: float = SHIFT) -> float:
    return by * u / (1 + (by - 1) * u)


def grid(intervals: int) -> list[float]:
    return [warped(1 - step / intervals) for step in range(intervals + 1)]


def blocks_of(sizes: Sequence[int]) -> list[slice]:
    return [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]


def conditioned(
    net: nn.Module, block: slice, x: Tensor, t: Tensor, text: Tensor, past: Tensor, past_t: Tensor,
    sizes: Sequence[int],
) -> Tensor:  # fmt: skip
    """The velocity of the frames `block` of one clip `x` given `past[:start]`: no batch, no mask
    of two halves, no cache.
    """
    start, stop = block.start, block.stop
    number = [index for index, size in enumerate(sizes) for _ in range(size)]
    visible = [[number[key] <= number[query] for key in range(stop)] for query in range(stop)]
    frames = torch.cat([past[:start], x[block]])[None]
    levels = torch.cat([past_t[:start], t[block]])[None]
    v = net(frames, levels, text[None], frames=torch.arange(stop), visible=torch.tensor(visible))
    return v[0, start:]


def beside_clean(net, x, t, text, clean, sizes) -> Tensor:
    """Teacher forcing of one clip, block by block."""
    zero = torch.zeros(len(x))
    parts = [conditioned(net, block, x, t, text, clean, zero, sizes) for block in blocks_of(sizes)]
    return torch.cat(parts)


def beside_noisy(net, x, t, text, sizes) -> Tensor:
    """Diffusion forcing of one clip, block by block."""
    parts = [conditioned(net, block, x, t, text, x, t, sizes) for block in blocks_of(sizes)]
    return torch.cat(parts)


def together(net, x, t, text) -> Tensor:
    """All frames of one clip see each other."""
    return net(x[None], t[None], text[None], frames=torch.arange(len(x)))[0]


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def assert_same_gradients(net: nn.Module, expected: Tensor) -> None:
    """The network's stored gradients are those of the scalar `expected`."""
    found = gradients(net)
    wanted = torch.autograd.grad(expected, list(net.parameters()))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-6 + 1e-4 * other.abs().max())
