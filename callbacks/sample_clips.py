"""A fixed panel of held-out prompts, generated every so often beside the real clips.

Numbers say that a student got better; a panel says at what. The same prompts and the same noise
every time, so that two panels differ by training alone. Each goes into TensorBoard (an animated
image and a contact sheet) and, as files, into the run's folder.
"""

import io
import os
from contextlib import nullcontext
from dataclasses import dataclass
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

_CAPTION = 14  # pixels of height
_GAP = 4


class Decoder(Protocol):
    """The half of an autoencoder that a panel needs."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] -> uint8 [B, T, H, W, c]."""
        ...


@dataclass(frozen=True)
class Panel:
    """Held-out prompts with the clips they describe.

    Args:
        text: [P, L, D] embeddings.
        keys: P sample keys; they decide the noise.
        captions: P sentences, drawn under the clips.
        videos: uint8 [P, T, H, W, c], the real clips.
    """

    text: Tensor
    keys: list[str]
    captions: list[str]
    videos: Tensor


class SampleClips(Callback):
    """Shows the panel as `pl_module.sample(text, keys)` makes it: real left, generated right.

    Args:
        panel: what to sample.
        autoencoder: decodes latents to pixels.
        folder: the run's folder; files go to `folder/samples`.
        every: optimizer steps between panels; one more is drawn at the last step.
        fps: frames per second of the clips.
        ema: sample the average instead of the student, if there is one.
        least_width: clips narrower than this many pixels are enlarged by a whole factor.
    """

    def __init__(
        self,
        panel: Panel,
        autoencoder: Decoder,
        folder: str | Path,
        every: int,
        fps: float,
        ema: StudentEMA | None = None,
        least_width: int = 96,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: {every} steps between panels; use 1 or more, or no panel")
        self._panel, self._autoencoder = panel, autoencoder
        self._folder, self._every, self._fps = Path(folder) / "samples", every, fps
        self._ema, self._least_width = ema, least_width
        self._step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw a panel if it is time, between steps."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        due = step % self._every == 0 or step == trainer.max_steps
        if due and step != self._step:
            self._step = step
            generated = self._sample(pl_module)
            if trainer.is_global_zero:
                self._show(trainer, step, generated)

    @torch.no_grad()
    def _sample(self, pl_module: LightningModule) -> np.ndarray:
        average = nullcontext() if self._ema is None else self._ema.swapped(pl_module)
        with average:
            latents = pl_module.sample(self._panel.text.to(pl_module.device), self._panel.keys)
        return self._autoencoder.decode(latents).cpu().numpy()

    def _show(self, trainer: Trainer, step: int, generated: np.ndarray) -> None:
        real = self._panel.videos.cpu().numpy()
        frames = min(real.shape[1], generated.shape[1])
        pairs = [
            [_strip([clip[:, frame] for clip in (real, generated)], row) for frame in range(frames)]
            for row in range(len(self._panel.captions))
        ]
        moving = [self._column([row[frame] for row in pairs], widen=2) for frame in range(frames)]
        sheet = self._column(
            [
                np.concatenate([_line(clip[row, :frames]) for clip in (real, generated)])
                for row in range(len(self._panel.captions))
            ],
            widen=frames,
        )
        files = {"gif": _gif(moving, self._fps), "png": _png(sheet)}
        for kind, content in files.items():
            _write(self._folder / f"step-{step:07d}.{kind}", content)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, "samples/clips", files["gif"], moving[0].size, step)
                _to_tensorboard(logger, "samples/sheet", files["png"], sheet.size, step)

    def _column(self, rows: list[np.ndarray], widen: int) -> Image.Image:
        """Stack pictures [H, W, 3], each with its caption under it."""
        scale = max(1, -(-self._least_width // (rows[0].shape[1] // widen)))
        height, width = rows[0].shape[0] * scale, rows[0].shape[1] * scale
        page = Image.new("RGB", (width, len(rows) * (height + _CAPTION)), "white")
        pen = ImageDraw.Draw(page)
        for number, (row, caption) in enumerate(zip(rows, self._panel.captions, strict=True)):
            top = number * (height + _CAPTION)
            picture = Image.fromarray(row).resize((width, height), Image.Resampling.NEAREST)
            page.paste(picture, (0, top))
            pen.text((2, top + height), caption, fill="black")
        return page


def _coloured(picture: np.ndarray) -> np.ndarray:
    """[..., 1 or 3] -> [..., 3]."""
    return np.broadcast_to(picture, (*picture.shape[:-1], 3))


def _strip(pictures: list[np.ndarray], row: int) -> np.ndarray:
    """Row `row` of each of [P, H, W, c], side by side."""
    left, right = (_coloured(picture[row]) for picture in pictures)
    gap = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], 1)


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


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def _to_tensorboard(
    logger: TensorBoardLogger, tag: str, content: bytes, size: tuple[int, int], step: int
) -> None:
    """Browsers play an animated GIF in an image summary; `add_video` would need moviepy."""
    image = Summary.Image(encoded_image_string=content, width=size[0], height=size[1], colorspace=3)
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    logger.experiment._get_file_writer().add_summary(summary, step)
