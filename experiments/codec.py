"""The autoencoder that a shard set's latents were made with, from what its manifest says."""

from typing import Any

from lightning_modules.networks.encoders import Autoencoder, PatchTransform


def autoencoder_of(manifest: dict[str, Any]) -> Autoencoder:
    """The decoder for latents of this set.

    Raises:
        ValueError: the manifest names an autoencoder this code does not have, or one whose content
            hash differs from the one it was written with.
    """
    stored, statistics = manifest["autoencoder"], manifest["normalisation"]
    if stored["class"] != "PatchTransform":
        raise ValueError(f"autoencoder {stored['class']!r} in the manifest is not known here")
    settings = {key: value for key, value in stored.items() if key not in ("class", "id")}
    autoencoder = PatchTransform(statistics["mean"], statistics["std"], **settings)
    if autoencoder.id != stored["id"]:
        raise ValueError(
            f"the manifest's autoencoder is {stored['id']}, this code makes {autoencoder.id}:"
            " curate the set again"
        )
    return autoencoder
