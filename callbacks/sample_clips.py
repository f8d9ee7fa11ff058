"""Validation samples: a fixed panel of held-out prompts, next to the real clips if there are any.

Prompts and noise are the same every time, so that two panels differ by training alone. Each is
written to TensorBoard (an animated image and a contact sheet) and to the run's folder.
"""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from callbacks.student_ema import StudentEMA
from datamodules.atomic import write_bytes

_CAPTION = 14  # pixels of height
_GAP = 4
_SHEET = 12  # frames of a contact sheet, evenly spread
_WIDEST = 208  # pixels; wider clips are shrunk by a whole factor


class Decoder(Protocol):
    """The half of an autoencoder that a panel needs."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] -> uint8 [B, T, H, W, c]."""
        ...


@dataclass(frozen=True)
class Panel:
    """Held-out prompts, with the real clips they describe if there are any.

    Args:
        text: [P, L, D] embeddings.
        keys: P sample keys; they decide the noise.
        captions: P sentences, drawn under the clips.
        videos: uint8 [P, T, H, W, c], the real clips; None for prompts alone.
        cameras: poses [P, F, 3, 4] and intrinsics [P, F, 4], where frames have them.
    """

    text: Tensor
    keys: list[str]
    captions: list[str]
    videos: Tensor | None
    cameras: dict[str, Tensor] = field(default_factory=dict)


class SampleClips(Callback):
    """Logs the panel, sampled by `pl_module.sample(text, keys)`: real left, generated right.

    Args:
        panel: what to sample.
        autoencoder: decodes latents to pixels.
        folder: the run's folder; files go to `folder/samples`.
        every: optimizer steps between panels; the last step has one too.
        fps: frames per second of the clips.
        ema: sample the EMA instead of the student, if there is one.
        at_once: batch size of sampling; 0: all prompts. Changes clips by rounding alone.
        autocast: makes the autocast context of sampling.
        least_width: clips narrower than this many pixels are enlarged by an integer factor.
    """

    def __init__(
        self,
        panel: Panel,
        autoencoder: Decoder,
        folder: str | Path,
        every: int,
        fps: float,
        ema: StudentEMA | None = None,
        at_once: int = 0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        least_width: int = 96,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: {every} steps between panels; use 1 or more, or no panel")
        self._panel, self._autoencoder = panel, autoencoder
        self._folder, self._every, self._fps = Path(folder) / "samples", every, fps
        self._ema, self._least_width = ema, least_width
        self._at_once, self._autocast = at_once or len(panel.keys), autocast
        self._real = None if panel.videos is None else _small(panel.videos.cpu().numpy())
        self._step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample a panel if due, between steps."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        due = step % self._every == 0 or step == trainer.max_steps
        if due and step != self._step:
            self._step = step
            latents = self._sample(pl_module)
            if trainer.is_global_zero:
                self._show(trainer, step, self._decoded(latents))

    @torch.no_grad()
    def _sample(self, pl_module: LightningModule) -> Tensor:
        """Latents [P, F, C, h, w]; on every rank, since the network may be sharded."""
        text, keys, some = self._panel.text.to(pl_module.device), self._panel.keys, self._at_once
        average = nullcontext() if self._ema is None else self._ema.swapped(pl_module)
        with average, self._autocast():
            parts = [slice(start, start + some) for start in range(0, len(keys), some)]
            clips = [
                pl_module.sample(text[part], keys[part], **self._cameras(part, pl_module.device))
                for part in parts
            ]
        return torch.cat(clips)

    def _cameras(self, part: slice, device: torch.device) -> dict[str, dict[str, Tensor]]:
        """The argument `cameras` of `sample`; none where the panel has none."""
        cameras = {name: each[part].to(device) for name, each in self._panel.cameras.items()}
        return {"cameras": cameras} if cameras else {}

    def _decoded(self, latents: Tensor) -> np.ndarray:
        """Uint8 [P, T, H, W, c], clip by clip, as one of Wan's has a hundred million pixels."""
        clips = [self._autoencoder.decode(clip[None].float()).cpu().numpy() for clip in latents]
        return np.concatenate([_small(clip) for clip in clips])

    def _show(self, trainer: Trainer, step: int, generated: np.ndarray) -> None:
        shown = [generated] if self._real is None else [self._real, generated]
        frames = min(clips.shape[1] for clips in shown)
        strips = [
            [_strip([clips[:, frame] for clips in shown], row) for frame in range(frames)]
            for row in range(len(self._panel.captions))
        ]
        moving = [
            self._column([row[frame] for row in strips], widen=len(shown))
            for frame in range(frames)
        ]
        chosen = np.linspace(0, frames - 1, min(frames, _SHEET)).round().astype(int)
        sheet = self._column(
            [
                np.concatenate([_line(clips[row, chosen]) for clips in shown])
                for row in range(len(self._panel.captions))
            ],
            widen=len(chosen),
        )
        files = {"gif": _gif(moving, self._fps), "png": _png(sheet)}
        for kind, content in files.items():
            write_bytes(self._folder / f"step-{step:07d}.{kind}", content)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, "samples/clips", files["gif"], moving[0].size, step)
                _to_tensorboard(logger, "samples/sheet", files["png"], sheet.size, step)

    def _column(self, rows: list[np.ndarray], widen: int) -> Image.Image:
        """Stack images [H, W, 3], each with its caption below."""
        scale = max(1, -(-self._least_width // (rows[0].shape[1] // widen)))
        height, width = rows[0].shape[0] * scale, rows[0].shape[1] * scale
        page = Image.new("RGB", (width, len(rows) * (height + _CAPTION)), "white")
        pen = ImageDraw.Draw(page)
        for number, (row, caption) in enumerate(zip(rows, self._panel.captions, strict=True)):
            top = number * (height + _CAPTION)
            image = Image.fromarray(row).resize((width, height), Image.Resampling.NEAREST)
            page.paste(image, (0, top))
            pen.text((2, top + height), caption, fill="black")
        return page


def _coloured(image: np.ndarray) -> np.ndarray:
    """[..., 1 or 3] -> [..., 3]."""
    return np.broadcast_to(image, (*image.shape[:-1], 3))


def _small(clips: np.ndarray) -> np.ndarray:
    """Uint8 [P, T, H, W, c], downsampled by average pooling if wider than `_WIDEST`."""
    factor = -(-clips.shape[3] // _WIDEST)
    if factor == 1:
        return clips
    count, frames, height, width, colours = clips.shape
    high, wide = height // factor, width // factor
    cut = clips[:, :, : high * factor, : wide * factor]
    squares = cut.reshape(count, frames, high, factor, wide, factor, colours)
    return squares.mean((3, 5)).round().astype(np.uint8)


def _strip(images: list[np.ndarray], row: int) -> np.ndarray:
    """Row `row` of each of [P, H, W, c], side by side."""
    first, *rest = (_coloured(image[row]) for image in images)
    gap = np.full((first.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([first, *(part for image in rest for part in (gap, image))], 1)


def _line(clip: np.ndarray) -> np.ndarray:
    """[T, H, W, c] -> [H, T * W, 3]."""
    return np.concatenate(list(_coloured(clip)), 1)


def _gif(pages: list[Image.Image], fps: float) -> bytes:
    stream = io.BytesIO()
    pages[0].save(
        stream,
        format="GIF",
        save_all=True,
        append_images=pages[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    return stream.getvalue()


def _png(page: Image.Image) -> bytes:
    stream = io.BytesIO()
    page.save(stream, format="PNG")
    return stream.getvalue()


def _to_tensorboard(
    logger: TensorBoardLogger, tag: str, content: bytes, size: tuple[int, int], step: int
) -> None:
    """Browsers play an animated GIF in an image summary; `add_video` would need moviepy."""
    image = Summary.Image(encoded_image_string=content, width=size[0], height=size[1], colorspace=3)
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    logger.experiment._get_file_writer().add_summary(summary, step)
