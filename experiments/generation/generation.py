"""Shared by the verbs that generate: inference networks, precision, sizes of shards."""

import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.shards.reader import ShardReader
from experiments.checkpoints.networks import (
    ROLES,
    autoencoder_id,
    bf16,
    load_network,
    network_defaults,
    network_section,
)
from experiments.runs.recipe import RUN_NAME
from lightning_modules.networks.cameras import projective

log = logging.getLogger(__name__)
PRECISIONS = ("32-true", "bf16-mixed")
ENCODED_BY = ("fps", "channels", "normalisation", "autoencoder", "text_encoder", "negative_prompt")
"""Manifest entries that generated shards inherit from their source."""
CAMERA_FIELDS = ("poses", "intrinsics")
"""Arrays of a sample whose frames have cameras (`datamodules/cameras.py`)."""
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


def stack(samples: Sequence[dict[str, Any]], field: str, device: torch.device) -> Tensor:
    """One field of all samples, float32 ``[B, ...]``."""
    return torch.from_numpy(np.stack([s[field] for s in samples])).float().to(device)


def cameras_of(samples: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
    """Cameras of all samples' frames, ``[B, F, 3, 4, 4]`` (`projective`)."""
    return projective(*(stack(samples, name, device) for name in CAMERA_FIELDS))


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
                cure = "with the same settings and on the same kind of processor"
                if "folder" in sets[other].manifest[part]:
                    cure = "with the same Wan folder"
                raise ValueError(
                    f"{sets[other].folder / 'manifest.json'} ({other}): {part} {said[other]}, but"
                    f" {sets[roles[0]].folder / 'manifest.json'} ({roles[0]}) has"
                    f" {said[roles[0]]}; curate both {cure}"
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


def require_network(
    role: str,
    section: Mapping[str, Any],
    key: str,
    clip_shape: Sequence[int],
    shards: ShardReader | None = None,
) -> None:
    """A network must fit the clips and the prompts that it is used on.

    Asked of its settings, before any weight is loaded.

    Args:
        role: of the network, for messages.
        section: its class and settings (`network_section`).
        key: of the recipe that has ``clip_shape``, ``[F, C, H, W]``.
        shards: whose latents and prompts it gets; None if they are not made yet.

    Raises:
        ValueError: other channels, text width or multiples of its patches, by key or manifest.
    """
    own = network_defaults(section) | section
    if own.get("out_channels", own["in_channels"]) != own["in_channels"]:
        raise ValueError(
            f"the {role} takes {own['in_channels']} channels and gives {own['out_channels']}: an"
            " image-to-video network, or of another model; give a Wan 2.1 text-to-video network"
        )
    if shards is not None:
        fields = {name: entry["shape"] for name, entry in shards.manifest["fields"].items()}
        facts = {
            "latent channels": (fields.get("latents", [0, None])[1], own["in_channels"]),
            "text width": (fields.get("text", [None])[-1], own["text_dim"]),
        }
        for what, (found, wanted) in facts.items():
            if found is not None and found != wanted:
                raise ValueError(
                    f"{shards.folder / 'manifest.json'}: {what} {found}, but the {role} was made"
                    f" for {wanted}; curate with the encoders the {role} was trained with"
                )
        _require_cameras(role, own, shards, clip_shape[0])
    if clip_shape[1] != own["in_channels"]:
        raise ValueError(
            f"{key}: {clip_shape[1]} channels, but the {role} was made for {own['in_channels']};"
            " set it to the shape of its latents, or take another network"
        )
    frames, height, width = own.get("patch_size", (1, 1, 1))
    if clip_shape[0] % frames or clip_shape[2] % height or clip_shape[3] % width:
        raise ValueError(
            f"{key}: {list(clip_shape)} is not whole patches of the {role}, {frames} x {height} x"
            f" {width}; make frames, height and width multiples of them"
        )


def camera_fields(shards: ShardReader) -> list[str]:
    """The arrays of a set's cameras; empty if it has none."""
    return [name for name in CAMERA_FIELDS if name in shards.manifest["fields"]]


def _require_cameras(role: str, own: Mapping[str, Any], shards: ShardReader, frames: int) -> None:
    """A network with cameras needs a set with cameras, and the reverse: none is ignored."""
    manifest = shards.folder / "manifest.json"
    poses = shards.manifest["fields"].get("poses")
    if poses is None and own.get("cameras"):
        raise ValueError(
            f"{manifest}: no poses, but the {role} was made with cameras; curate clips with"
            " cameras, or take a network without (network.cameras=false)"
        )
    if poses is None:
        return
    if not own.get("cameras"):
        raise ValueError(
            f"{manifest}: its frames have cameras, which the {role} would ignore; make it with"
            " network.cameras=true, or take clips without cameras"
        )
    if poses["shape"][0] < frames:
        raise ValueError(
            f"{manifest}: walks of {poses['shape'][0]} frames, but the {role} is asked for"
            f" {frames}; curate longer ones"
        )


def require_usable(
    role: str, where: Path, key: str, clip_shape: Sequence[int], shards: ShardReader
) -> None:
    """`require_network` and `require_autoencoder` of a network that is there."""
    require_network(f"{role} {where}", network_section(where), key, clip_shape, shards)
    require_autoencoder(role, where, shards)


def require_given(recipe: Mapping[str, Any], key: str, clip_shape: Sequence[int]) -> None:
    """`require_network` of what is known before any run is done: networks given by a path.

    Raises:
        ValueError: as `require_network`, or another pipeline than Wan 2.1's.
    """
    for role, where in recipe["needs"].items():
        if role in ROLES and Path(where).is_dir() and not RUN_NAME.fullmatch(where):
            require_network(f"{role} {where}", network_section(where), key, clip_shape)


def encoders_of(shards: ShardReader) -> dict[str, Any]:
    """The encoders of a set, for the manifest of shards generated from it."""
    return {name: shards.manifest[name] for name in ENCODED_BY if name in shards.manifest}
