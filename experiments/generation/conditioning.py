"""Conditioning frames: the first latent frames of a clip, from curated clips or from an image.

Image to video: an image becomes the first latent frame, which encodes the first frame of a video
alone in Wan's VAE and the tiny world's. It is resized to cover the clip and cropped to its centre;
what is transparent becomes white.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.curation.split import digest_of
from datamodules.shards.npy_tar import sha256
from datamodules.shards.reader import ShardReader
from experiments.generation.codec import autoencoder_of
from experiments.generation.generation import stack

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
Samples = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Conditioning:
    """Conditioning frames of the samples of a shard set.

    Args:
        fields: arrays to read from the prompts' set.
        about: manifest entries.
        frames: from a batch of samples to ``[B, k, C, h, w]``; None for text to video.
    """

    fields: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    frames: Callable[[Samples], Tensor | None] = lambda samples: None


def first_frames_of_clips(
    clips: ShardReader, count: int, clip_shape: Sequence[int], device: torch.device
) -> Conditioning:
    """The first ``count`` latent frames of each clip of a set.

    Raises:
        ValueError: the set has no clips, shorter ones, or of another shape.
    """
    stored = clips.manifest["fields"].get("latents", {}).get("shape")
    if stored is None or stored[1:] != list(clip_shape[1:]) or stored[0] < count:
        raise ValueError(
            f"sample.given: {count} conditioning frames of {clip_shape[1:]} wanted,"
            f" {clips.folder / 'manifest.json'} has latents {stored}; give clips as needs.prompts,"
            " images as needs.pictures, or set it to 0"
        )
    return Conditioning(
        ["latents"], frames=lambda samples: stack(samples, "latents", device)[:, :count]
    )


def encoded_images(
    where: Path,
    prompts: ShardReader,
    numbers: range,
    clip_shape: Sequence[int],
    device: torch.device,
) -> Conditioning:
    """The latent frame of each prompt's image, by the autoencoder of the prompts' set.

    Args:
        where: one image for all prompts, or a folder with one for each, named after the prompt's
            key, or after its name in the set (``line-17.png``).
        prompts: the set.
        numbers: of the prompts that will be sampled.
        clip_shape: ``[F, C, h, w]``.
        device: where images are encoded and latents returned.

    Raises:
        FileNotFoundError: no such folder, or no image for some prompt.
        ValueError: a file that is not an image, or two for one prompt; an autoencoder with other
            channels.
    """
    files = _files(where, [prompts.read(number, []) for number in numbers])
    vae = autoencoder_of(prompts.manifest, device, torch.float32)
    if vae.channels != clip_shape[1]:
        raise ValueError(
            f"sample.clip_shape: {clip_shape[1]} channels, the autoencoder of"
            f" {prompts.folder / 'manifest.json'} has {vae.channels}"
        )
    height, width = (side * vae.spatial_stride for side in clip_shape[2:])

    @lru_cache(maxsize=1)  # an image shared by all prompts is encoded once
    def frame(file: Path) -> Tensor:
        image = torch.from_numpy(read_image(file, height, width, vae.pixel_channels))
        return vae.encode(image[None, None].to(device))[0].float()

    def frames(samples: Samples) -> Tensor:
        return torch.stack([frame(files[sample["key"]]) for sample in samples])

    hashes = {file: sha256(file) for file in set(files.values())}
    about = {"pictures": digest_of(hashes[file] for file in files.values())}
    return Conditioning(about=about, frames=frames)


def read_image(file: Path, height: int, width: int, colours: int) -> np.ndarray:
    """Uint8 ``[H, W, 1 or 3]`` of a file, in its EXIF orientation, transparency laid over white.

    Raises:
        ValueError: it is not an image, a damaged one, an animation, or of colours that have no
            defined place in RGB.
    """
    try:
        with Image.open(file) as opened:
            several = getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO"  # of phones
            upright = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{file}: not a readable image ({error}); give a whole one ({', '.join(SUFFIXES)})"
        ) from error
    if several:
        raise ValueError(f"{file}: an animation; give one of its pictures")
    upright = _plain(file, upright).convert("RGB" if colours == 3 else "L")
    cut = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    return np.array(cut).reshape(height, width, colours)


def _plain(file: Path, image: Image.Image) -> Image.Image:
    """The image in mode RGB or L, of 8 bits."""
    if image.mode.startswith("I"):
        return _of_16_bits(file, np.asarray(image))
    if image.mode not in _MODES:
        raise ValueError(f"{file}: its colours ({image.mode}) are not RGB; convert it to RGB")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _of_16_bits(file: Path, values: np.ndarray) -> Image.Image:
    """Grey values 0..65535, which Pillow would cut off at 255."""
    if values.min() < 0 or values.max() >= 2**16:
        raise ValueError(f"{file}: grey values beyond 16 bits; convert it to 8 or 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _files(where: Path, samples: Samples) -> dict[str, Path]:
    """The image of every sample, by its key."""
    if where.is_file():
        return {sample["key"]: where for sample in samples}
    if not where.is_dir():
        raise FileNotFoundError(f"{where}: no such image, nor a folder of images")
    there: dict[str, list[Path]] = {}
    for path in sorted(where.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            there.setdefault(path.stem, []).append(path)
    files, missing = {}, []
    for sample in samples:
        names = [sample["key"], str(sample["info"].get("name", ""))]
        found = [path for name in dict.fromkeys(names) for path in there.get(name, [])]
        if len(found) > 1:
            raise ValueError(f"{found[0]} and {found[1]} are for one prompt; remove one of them")
        if found:
            files[sample["key"]] = found[0]
        else:
            missing.append(" or ".join(filter(None, names)))
    if missing:
        raise FileNotFoundError(
            f"{where}: no image for {len(missing)} of {len(samples)} prompts; name them"
            f" {'; '.join(missing[:3])}{'; ...' if missing[3:] else ''}"
            f" ({', '.join(SUFFIXES)}), or give one file for all prompts"
        )
    return files
