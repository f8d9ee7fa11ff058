"""The autoencoder that a shard set's latents were made with, from what its manifest says."""

from typing import Any

import torch

from lightning_modules.networks.encoders import Autoencoder, PatchTransform, WanVAE


def autoencoder_of(manifest: dict[str, Any], device: str | torch.device = "cpu") -> Autoencoder:
    """The decoder for latents of this set.

    Raises:
        FileNotFoundError: the Wan folder it came from is gone.
        ValueError: the manifest names an autoencoder this code does not have, or one whose content
            hash differs from the one it was written with.
    """
    stored = manifest["autoencoder"]
    if stored["class"] == "WanVAE":
        autoencoder: Autoencoder = WanVAE(stored["folder"], device)
        cure = f"give {stored['folder']} the VAE it had, or curate the set again"
    elif stored["class"] == "PatchTransform":
        autoencoder, cure = _patch_transform(manifest), "curate the set again"
    else:
        raise ValueError(f"autoencoder {stored['class']!r} in the manifest is not known here")
    if autoencoder.id != stored["id"]:
        raise ValueError(
            f"the manifest's autoencoder is {stored['id']}, found is {autoencoder.id}: {cure}"
        )
    return autoencoder


def _patch_transform(manifest: dict[str, Any]) -> PatchTransform:
    stored, statistics = manifest["autoencoder"], manifest["normalisation"]
    settings = {key: value for key, value in stored.items() if key not in ("class", "id")}
    return PatchTransform(statistics["mean"], statistics["std"], **settings)
