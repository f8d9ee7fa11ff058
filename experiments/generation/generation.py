"""Shared by the verbs that generate: inference networks, precision, and resumable batches."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.shards.reader import ShardReader
from experiments.checkpoints.networks import autoencoder_id, bf16, load_network

log = logging.getLogger(__name__)
PRECISIONS = ("32-true", "bf16-mixed")
ENCODED_BY = ("fps", "channels", "normalisation", "autoencoder", "text_encoder", "negative_prompt")
"""Manifest entries that generated shards inherit from their source."""
SHARD_BYTES = 2**29
"""Target size of a generated shard, which is what an interruption can lose."""


def check_precision(precision: str, section: str) -> None:
    """Refuse an unknown precision.

    Raises:
        ValueError: names the key and the choices.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{section}.precision: {precision!r} is none of {', '.join(PRECISIONS)}")


def frozen(where: Path, device: torch.device, precision: str) -> nn.Module:
    """Load a frozen network for inference; under bf16-mixed `bf16`."""
    network = load_network(where).eval().requires_grad_(False)
    return (bf16(network) if precision == "bf16-mixed" else network).to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast for inference at this precision; solver states stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def samples_per_shard(shapes: Mapping[str, Sequence[int]], bytes_each: int = 4) -> int:
    """Samples per shard of about `SHARD_BYTES`, at most webdataset's usual 1024."""
    sample = bytes_each * sum(prod(shape) for shape in shapes.values())
    return max(1, min(1024, SHARD_BYTES // sample))


def batches(
    shards: ShardReader, numbers: range, size: int, fields: Sequence[str], written: set[str]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Batches with at least one sample not yet ``written``, each with the index it ends at.

    A partly written batch is generated again as a whole: the bits of a sample may depend on the
    batch that it is computed in.
    """
    keys = shards.keys
    for start in range(numbers.start, numbers.stop, size):
        stop = min(start + size, numbers.stop)
        if not written.issuperset(keys[start:stop]):
            yield stop, [shards.read(number, fields) for number in range(start, stop)]


def stack(samples: Sequence[dict[str, Any]], field: str, device: torch.device) -> Tensor:
    """One field of all samples, float32 ``[B, ...]``."""
    return torch.from_numpy(np.stack([s[field] for s in samples])).float().to(device)


def require_same_encoders(sets: Mapping[str, ShardReader]) -> None:
    """Shard sets that are used together must come from the same VAE and text encoder.

    Args:
        sets: by role. A set whose manifest names no encoder passes.

    Raises:
        ValueError: names both manifests, what differs and the cure.
    """
    for part in ("autoencoder", "text_encoder"):
        said = {
            role: shards.manifest[part]["id"]
            for role, shards in sets.items()
            if "id" in (shards.manifest.get(part) or {})
        }
        roles = list(said)
        for other in roles[1:]:
            if said[other] != said[roles[0]]:
                raise ValueError(
                    f"{sets[other].folder / 'manifest.json'} ({other}): {part} {said[other]}, but"
                    f" {sets[roles[0]].folder / 'manifest.json'} ({roles[0]}) has"
                    f" {said[roles[0]]}; curate both with the same Wan folder"
                )


def require_autoencoder(role: str, where: Path, shards: ShardReader) -> None:
    """A network and its input latents must be of the same autoencoder.

    Warns if one of them does not name it; worlds whose latents are the data have none.

    Raises:
        ValueError: names the manifest, the network and the cure.
    """
    manifest = shards.folder / "manifest.json"
    own, found = autoencoder_id(where), (shards.manifest.get("autoencoder") or {}).get("id")
    if own == found:
        return
    if None in (own, found):
        silent = f"the {role} {where}" if own is None else f"{manifest}"
        log.warning(
            "%s does not name its autoencoder, so it was not checked against that of %s, %s;"
            " to have it checked, put the pipeline's vae/ into the network's folder",
            silent,
            manifest if own is None else f"the {role} {where}",
            own or found,
        )
        return
    raise ValueError(
        f"{manifest}: autoencoder {found}, but the {role} {where}"
        f" was made with {own}; curate with the VAE of the {role}, or take another {role}"
    )


def encoders_of(shards: ShardReader) -> dict[str, Any]:
    """The encoders of a set, for the manifest of shards generated from it."""
    return {name: shards.manifest[name] for name in ENCODED_BY if name in shards.manifest}
