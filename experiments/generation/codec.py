"""The encoders of a shard set, latents' and texts', from its manifest."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from datamodules.shards.reader import ShardReader
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import RUN_NAME
from lightning_modules.networks.encoders import (
    Autoencoder,
    PatchTransform,
    TextEncoder,
    TinyText,
    WanText,
    WanVAE,
)

log = logging.getLogger(__name__)


def follow_autoencoder(shards: ShardReader, folder: RunFolder) -> None:
    """Point a set's manifest, in memory, to where its autoencoder lies now.

    A set names the folder that its autoencoder lay in. If that has moved, or has another one now,
    the same is looked for in the folders that a run and its needs name.

    Args:
        shards: the set.
        folder: of the run that reads it.

    Raises:
        ValueError: it is in none of them; names the manifest.
    """
    stored = shards.manifest.get("autoencoder") or {}
    if stored.get("class") != "WanVAE" or _hub_id(stored["folder"]):
        return
    places = [Path(stored["folder"]), *dict.fromkeys(_places(folder))]
    places = [place for place in places if (place / "vae" / "config.json").is_file()]
    found = next((place for place in places if WanVAE(place).id == stored["id"]), None)
    if found is None:
        looked = f"; {', '.join(map(str, places))} has another" if places else ""
        raise ValueError(
            f"{shards.folder / 'manifest.json'}: its autoencoder {stored['id']} lay in"
            f" {stored['folder']} and is not there{looked}. Put it back, or say in the scale (wan)"
            " where it is now and start from the recipe's name"
        )
    if str(found) != stored["folder"]:
        log.info("%s: its autoencoder is in %s now", shards.folder / "manifest.json", found)
        shards.manifest["autoencoder"] = stored | {"folder": str(found)}


def _places(folder: RunFolder) -> Iterator[Path]:
    """Folders that a run and the runs behind it name."""
    for where in folder.recipe["needs"].values():
        if not RUN_NAME.fullmatch(where):
            yield Path(where)
    for need in folder.needs.values():
        if (need.path / "recipe.yaml").is_file():
            yield from _places(need)


def _hub_id(where: str) -> bool:
    return not Path(where).is_absolute() and where.count("/") == 1 and not where.startswith(".")


def autoencoder_of(
    manifest: Mapping[str, Any],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    compile: bool = False,
) -> Autoencoder:
    """The autoencoder that this set was encoded with.

    Args:
        manifest: of the set.
        device: where it runs.
        dtype: of its weights, if it has any; None: `wan_vae_dtype` of the device.
        compile: with fewer kernels, if it is Wan's, on CUDA.

    Raises:
        FileNotFoundError: its Wan folder is missing.
        ValueError: an unknown class, or a content hash other than the manifest's.
    """
    stored = manifest.get("autoencoder")
    if stored is None:
        raise ValueError(
            "needs: the manifest.json of these clips names no autoencoder: they are of a"
            " closed-form world, without pictures; give clips of another, or score_law_*"
        )
    if stored["class"] == "WanVAE":
        autoencoder: Autoencoder = WanVAE(stored["folder"], device, dtype, compile)
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


def text_encoder_of(manifest: dict[str, Any], device: str | torch.device = "cpu") -> TextEncoder:
    """The text encoder that the prompts of this set were encoded with.

    Raises:
        FileNotFoundError: its Wan folder is missing.
        ValueError: an unknown class, or a content hash other than the manifest's.
    """
    stored = manifest["text_encoder"]
    settings = {key: value for key, value in stored.items() if key not in ("class", "id")}
    if stored["class"] == "WanText":
        dtype = getattr(torch, settings.get("dtype", "float32"))
        encoder: TextEncoder = WanText(settings["folder"], device, dtype)
    elif stored["class"] == "TinyText":
        encoder = TinyText(**settings)
    else:
        raise ValueError(f"text encoder {stored['class']!r} in the manifest is unknown")
    if encoder.id != stored["id"]:
        raise ValueError(
            f"the manifest's text encoder is {stored['id']}, but found {encoder.id}: give"
            " it the text encoder it had, or curate the set again"
        )
    return encoder


def _patch_transform(manifest: Mapping[str, Any]) -> PatchTransform:
    stored, statistics = manifest["autoencoder"], manifest["normalisation"]
    settings = {key: value for key, value in stored.items() if key not in ("class", "id")}
    return PatchTransform(statistics["mean"], statistics["std"], **settings)
