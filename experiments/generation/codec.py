"""The autoencoder of a shard set's latents, from its manifest."""

from typing import Any

import torch

from lightning_modules.networks.encoders import Autoencoder, PatchTransform, WanVAE


def autoencoder_of(manifest: dict[str, Any], device: str | torch.device = "cpu") -> Autoencoder:
    """The autoencoder that this set was encoded with.

    Raises:
        FileNotFoundError: its Wan folder is missing.
        ValueError: an unknown class, or a content hash other than the manifest's.
    """
    stored = manifest["autoencoder"]
    if stored["class"] == "WanVAE":
        autoencoder: Autoencoder = WanVAE(stored["folder"], device)
        cure = f"give {stored['folder']} the VAE it had, or curate the set again"
    elif stored["class"] == "PatchTransform":
        autoencoder, cure = _patch_transform(manifest), "curate the set again"
    else:
        raise ValueError(f"autoencoder {stored['class']!r} in the manifest is unknown")
    if autoencoder.id != stored["id"]:
        raise ValueError(
            f"the manifest's autoencoder is {stored['id']}, but found {autoencoder.id}: {cure}"
        )
    return autoencoder


def _patch_transform(manifest: dict[str, Any]) -> PatchTransform:
    stored, statistics = manifest["autoencoder"], manifest["normalisation"]
    settings = {key: value for key, value in stored.items() if key not in ("class", "id")}
    return PatchTransform(statistics["mean"], statistics["std"], **settings)
