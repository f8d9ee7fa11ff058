"""A probe trained for seconds, and clips of the tiny world, shared by the tests of the metrics."""

import fcntl
import hashlib
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from datamodules.atomic import replacing
from experiments.worlds.digits.moving_digits import World, caption
from experiments.worlds.digits.probe import WorldProbe
from lightning_modules.networks.encoders.autoencoders import PatchTransform

WORLD = World(
    size=32, frames=8, fps=8, sprite=16, slow=1.5, fast=3.5, turn=0.25, still=0.1, spread=2.0,
    tile=8, scroll=8, dark=0.1, bright=0.3,
)  # fmt: skip
SETTINGS = {
    "steps": 600,
    "learning_rate": 4e-3,
    "position_weight": 1.0,
    "ground_weight": 2.0,
    "min_accuracy": 0.9,
    "max_position_error": 1.0,
    "kept": 16,
    "seed": 0,
}


@lru_cache(maxsize=8)
def clips(split: str, count: int, first: int = 0) -> SimpleNamespace:
    """Pixels [N, 8, 32, 32, 1], videos (pixels through the codec), states [N, 8, 4], captions."""
    made = [WORLD.clip(0, split, number) for number in range(first, first + count)]
    pixels = np.stack([clip.video for clip in made])
    codec = PatchTransform([0.0] * 16, 1.0, 16)
    return SimpleNamespace(
        videos=codec.decode(codec.encode(torch.from_numpy(pixels))).numpy(),
        pixels=pixels,
        states=np.stack([clip.states for clip in made]),
        ground=np.stack([clip.ground.seen(WORLD.size) for clip in made]),
        attributes=[clip.attributes.as_dict() for clip in made],
        captions=[caption(clip.attributes) for clip in made],
    )


def samples(source: SimpleNamespace) -> list[dict]:
    """As a shard reader yields them."""
    return [
        {"video": video, "state": state, "ground": ground, "info": {"attributes": attributes}}
        for video, state, ground, attributes in zip(
            source.pixels, source.states, source.ground, source.attributes, strict=True
        )
    ]


def train(steps: int) -> WorldProbe:
    """`steps` steps of the real training step, without a Trainer."""
    module = WorldProbe(**{**SETTINGS, "steps": steps})
    module.log = lambda *_, **__: None
    (optimizer,), (schedule,) = module.configure_optimizers()
    data, rng = clips("train", 1024), np.random.default_rng(0)
    module.train()
    for _ in range(steps):
        chosen = rng.integers(len(data.pixels), size=32)
        batch = {
            "video": torch.from_numpy(data.pixels[chosen]),
            "state": torch.from_numpy(data.states[chosen]),
            "ground": torch.from_numpy(data.ground[chosen]),
            "info": [{"attributes": data.attributes[i]} for i in chosen],
        }
        loss = module.training_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule["scheduler"].step()
    return module


def trained() -> WorldProbe:
    """The weights of the shared probe, trained by the first process of this checkout that asks.

    They are kept for as long as the code that they depend on stays the same.
    """
    root = Path(__file__).parent.parent
    code = [Path(__file__), *sorted((root / "experiments" / "worlds" / "digits").glob("*.py"))]
    text = b"".join(file.read_bytes() for file in code) + torch.__version__.encode()
    file = root / ".pytest_cache" / f"probe-{hashlib.sha256(text).hexdigest()[:16]}.safetensors"
    file.parent.mkdir(exist_ok=True)
    with open(file.with_suffix(".lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.is_file():
            module = train(SETTINGS["steps"])
            with replacing(file) as part:
                save_file(module.state_dict(), part)
            return module
    module = WorldProbe(**SETTINGS)
    module.load_state_dict(load_file(file))
    return module


@lru_cache(maxsize=1)
def probe() -> WorldProbe:
    """The shared probe, measured on held-out handwriting."""
    module = trained()
    module.measure(samples(clips("heldout", 128)))
    return module
