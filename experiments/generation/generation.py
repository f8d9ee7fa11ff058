"""What the verbs that generate share: a frozen network, its precision, batches to go on with."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.shards.reader import ShardReader
from experiments.checkpoints.networks import autoencoder_id, load_network
from lightning_modules.networks.wan.precision import to_bfloat16

log = logging.getLogger(__name__)
PRECISIONS = ("32-true", "bf16-mixed")
ENCODED_BY = ("fps", "channels", "normalisation", "autoencoder", "text_encoder", "negative_prompt")
"""Entries of a manifest that what is generated from a set takes over."""
TAR_BYTES = 2**29
"""Of a tar of generated clips: what is lost at most by an interruption."""


def check_precision(precision: str, section: str) -> None:
    """Refuse a precision that nobody knows here.

    Raises:
        ValueError: names the key and what there is.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{section}.precision: {precision!r} is none of {', '.join(PRECISIONS)}")


def frozen(where: Path, device: torch.device, precision: str) -> nn.Module:
    """The network of a folder, only to be asked; in bfloat16 what autocast would round anyway."""
    network = load_network(where).eval().requires_grad_(False)
    if precision == "bf16-mixed":
        to_bfloat16(network)
    return network.to(device)


def computing(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network of that precision is asked; states of solvers stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def per_tar(shapes: Mapping[str, Sequence[int]], bytes_each: int = 4) -> int:
    """Samples of a tar of about `TAR_BYTES`, at most webdataset's usual 1024."""
    sample = bytes_each * sum(prod(shape) for shape in shapes.values())
    return max(1, min(1024, TAR_BYTES // sample))


def batches(
    shards: ShardReader, numbers: range, size: int, fields: Sequence[str], written: set[str]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Batches of samples of which something is still to be written, with the number they end at.

    A batch is made anew as a whole, whatever of it was written before an interruption: the bits of
    a sample may depend on the batch that it is computed in.
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
    """Shard sets that are used together must be made by the same VAE and text encoder.

    Args:
        sets: by what they are for. One that does not say what it was made with passes.

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
    """A network and the latents that it meets must be of the same autoencoder.

    Warns where one of them does not say; worlds whose latents are the data have none.

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
            "%s does not say which autoencoder it was made with, so that nobody checked whether it"
            " is that of %s, %s; the vae/ of a pipeline says it, put into a network's folder too",
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
    """What a set was encoded by, for the manifest of what is generated from it."""
    return {name: shards.manifest[name] for name in ENCODED_BY if name in shards.manifest}
