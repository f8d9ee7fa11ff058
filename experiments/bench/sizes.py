"""The sizes of a scale that time and memory depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.checkpoints.networks import check_network, network_class
from experiments.runs.config import interpolate, override
from experiments.runs.files import load_scale
from experiments.runs.recipe import Library

BYTES = {"32-true": 4, "bf16-mixed": 2, "bf16-true": 2, "16-mixed": 2}
"""Of an activation, or of a weight as it is multiplied, at Lightning's precisions."""


@dataclass(frozen=True)
class NetworkSize:
    """Sizes of a Wan transformer from which operations and bytes are counted."""

    width: int
    ffn: int
    layers: int
    channels: int
    text_dim: int
    freq_dim: int
    prope: bool = False
    motion: bool = False

    @classmethod
    def of(cls, network: Mapping[str, Any]) -> NetworkSize:
        """From a scale's ``network``; ValueError if operations of its class are not Wan's."""
        if not getattr(kind := network_class(network), "counted_as_wan", False):
            raise ValueError(f"operations and bytes are not counted for {kind.__name__}")
        return cls(
            width=network["num_attention_heads"] * network["attention_head_dim"],
            ffn=network["ffn_dim"],
            layers=network["num_layers"],
            channels=network["in_channels"],
            text_dim=network["text_dim"],
            freq_dim=network.get("freq_dim", 256),
            prope=network.get("cameras", False) and network.get("prope", True),
            motion=network.get("motion", False),
        )

    @property
    def parameters(self) -> int:
        """Weights and biases of the linear layers; norms and tables are about 0.1% and left out."""
        d = self.width
        block = (8 + self.prope) * (d * d + d) + 2 * d * self.ffn + self.ffn + d
        patch = 4 * self.channels * d + d
        time = self.freq_dim * d + d * d + 6 * d * d + 8 * d
        text = self.text_dim * d + d * d + 2 * d
        motion = self.motion * (17 * d + 6 * d * (d + 1))
        return self.layers * block + patch + time + text + motion + self._head

    @property
    def behind_last_keys(self) -> int:
        """Of these, those that a call without predictions does not need: in the last layer queries,
        outputs and the feed-forward, and the head.
        """
        d = self.width
        outputs = (4 + self.prope) * (d * d + d)
        return outputs + 2 * d * self.ffn + self.ffn + d + self._head

    @property
    def _head(self) -> int:
        return 4 * self.channels * (self.width + 1)


def scale_tree(scale: str, settings: Mapping[str, Any], library: Library) -> dict[str, Any]:
    """A scale with settings on top, every interpolation resolved.

    Raises:
        FileNotFoundError, ValueError: an unknown scale or key, with the nearest; a wrong network.
    """
    tree = load_scale(library.scales, scale)
    file = library.scales / scale
    tree, _ = override(tree, {}, dict(settings), library.scales / "the command line", file)
    if "bench" not in tree:
        raise ValueError(f"{file}.yaml has no section 'bench', which says what else is measured")
    every = {key: f"${{{key}}}" for key in tree}
    resolved = interpolate(tree, every, file.with_name(f"{file.name}.yaml"))
    check_network(resolved["network"])
    return resolved
