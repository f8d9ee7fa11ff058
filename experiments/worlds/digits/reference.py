"""Probe features of the real reference clips, computed once."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.shards.reader import ShardReader, open_shards
from experiments.generation.codec import autoencoder_of
from experiments.metrics.distances import Manifold
from experiments.worlds.digits import trajectory
from experiments.worlds.digits.appearance import sharpness
from experiments.worlds.digits.moving_digits import World
from experiments.worlds.digits.probe_network import ProbeNetwork, Readings
from experiments.worlds.digits.transitions import TransitionLaw
from experiments.worlds.digits.wanted import Wanted

MANIFOLD_CLIPS = 512  # clips whose every second frame spans the real manifold


class Reference:
    """Real clips of one world, shared by the evaluations of many sets of clips.

    Args:
        clips: uint8 [M, T, 32, 32, 1].
        attributes: of their captions.
        probe: the gated network.
        world: parameters of the world.
        fps: frames a second.
    """

    def __init__(
        self,
        clips: np.ndarray,
        attributes: list[dict[str, Any]],
        probe: ProbeNetwork,
        world: World,
        fps: float,
    ) -> None:
        self.wanted = Wanted.of(attributes)
        self.clips, self.probe, self.world, self.fps = clips, probe, world, fps

    @cached_property
    def readings(self) -> Readings:
        """Outputs of the probe for the real clips."""
        return self.probe.read(self.clips)

    @cached_property
    def path(self) -> trajectory.Path:
        """Nearest admissible path of each real clip."""
        return trajectory.follow(self.readings.position, self.world)

    @cached_property
    def manifold(self) -> Manifold:
        """The k-NN manifold of real frames in feature space."""
        features = self.readings.features[:MANIFOLD_CLIPS, ::2]
        return Manifold(features.reshape(-1, features.shape[-1]))

    @cached_property
    def law(self) -> TransitionLaw:
        """The law of real transitions."""
        return TransitionLaw.of(self.readings, self.wanted)

    @cached_property
    def sharpness(self) -> float:
        """Geometric mean sharpness of real frames."""
        return float(np.exp(np.log(np.maximum(sharpness(self.clips), 1e-6)).mean()))


def read_clips(
    shards: Path, first: int, count: int
) -> tuple[np.ndarray, list[dict[str, Any]], dict[str, Any]]:
    """Clips `first`.. as pixels uint8 [count, T, H, W, c], their attributes, and the manifest.

    Real clips pass through the autoencoder, as generated ones do, so its error cancels.

    Raises:
        ValueError: too few clips, or a set without pixels and latents.
    """
    reader = open_shards(shards)
    if first < 0 or count < 1 or first + count > len(reader):
        raise ValueError(
            f"score: clips {first}..{first + count - 1} wanted, {shards} has {len(reader)}: lower "
            "score.clips, score.first or score.reference_clips"
        )
    field = next((name for name in ("latents", "video") if name in reader.fields), None)
    if field is None:
        raise ValueError(f"{shards}: has neither latents nor video; score wants clips")
    stored = [reader.read(i, [field]) for i in range(first, first + count)]
    values = np.stack([sample[field] for sample in stored])
    if field == "latents":
        latents = torch.from_numpy(values).float()
        values = autoencoder_of(reader.manifest).decode(latents).numpy()
    return values, [_attributes(sample, reader) for sample in stored], reader.manifest


def world_of(manifest: dict[str, Any]) -> World:
    """Parameters of the world that a held-out set was drawn from.

    Raises:
        ValueError: the manifest has none.
    """
    if "world" not in manifest:
        raise ValueError("the reference's manifest.json names no world: curate it again")
    return World(**manifest["world"])


def _attributes(sample: dict[str, Any], reader: ShardReader) -> dict[str, Any]:
    try:
        return sample["info"]["attributes"]
    except KeyError:
        raise ValueError(
            f"sample {sample['key']!r} of {reader.folder} has no attributes, which its caption is "
            "judged by: sample from prompts of the tiny world"
        ) from None
