"""``generate``: a video of each prompt, and what it took."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.progress import track

from datamodules.cameras import parse_keys
from datamodules.curation.text_lists import read_lines
from experiments.generation.conditioning import read_image
from experiments.generation.events import Event, NewKeys
from experiments.generation.mp4 import write_mp4
from experiments.generation.session import Session
from experiments.generation.student import Student
from experiments.live.meters import peak_memory
from experiments.live.students import open_student

log = logging.getLogger(__name__)
OUT = Path("generated")


@dataclass
class Clock:
    """How long a video took, the update of the context and the decoder included.

    Args:
        start: when its prompt was given.
        times: when each block had been decoded, with its number of frames.
    """

    start: float
    times: list[tuple[float, int]] = field(default_factory=list)

    def told(self) -> str:
        """First-frame latency, and frames per second after the first block."""
        first, *others = self.times
        text = f"first frame after {first[0] - self.start:.3g} s"
        if others:
            frames = sum(count for _, count in others)
            text += f", then {frames / (others[-1][0] - first[0]):.3g} frames/s"
        return text


def generate_videos(chosen: argparse.Namespace) -> None:
    """Write an mp4 of each prompt; say frames/s, first-frame latency and memory.

    Raises:
        FileNotFoundError: a file that was named is not there.
        ValueError: a student, prompt, image or number that does not fit.
    """
    student = open_student(chosen.student, chosen)
    if chosen.frames is not None and chosen.frames < 1:
        raise ValueError(f"--frames: {chosen.frames} must be at least 1")
    if not 0 <= chosen.seed < 2**63:
        raise ValueError(f"--seed: {chosen.seed} must be at least 0 and below 2**63")
    prompts = _prompts(chosen, student)
    files = _files(chosen, student, prompts)
    images = _images(chosen.image, student, prompts)
    walks = [_walk(chosen.keys, student, image is not None) for image, _ in images]
    for prompt, file, first, (events, walked) in zip(prompts, files, images, walks, strict=True):
        frames = chosen.frames or student.pixels(walked)
        clock = Clock(perf_counter())
        session = Session(student, prompt, chosen.seed, chosen.steps, *first, events)
        write_mp4(file, _shown(pictures(session, frames, clock), frames, file.name), student.fps)
        log.info(
            "%s: %r, %d frames (%.3g s at %g frames/s), %d steps: %s; peak memory %s",
            file, prompt, frames, frames / student.fps, student.fps, session.steps, clock.told(),
            peak_memory(student.device),
        )  # fmt: skip


def _shown(made: Iterable[np.ndarray], count: int, name: str) -> Iterable[np.ndarray]:
    """The frames, with a bar that shows how many there are and how long the rest takes."""
    console = Console(stderr=True)
    return track(
        made, name, count, console=console, transient=True, disable=not console.is_terminal
    )


def pictures(session: Session, count: int, clock: Clock) -> Iterator[np.ndarray]:
    """The first ``count`` frames of a session, uint8 ``[H, W, c]``, made as they are asked for."""
    made = 0
    while made < count:
        block = session.next()
        clock.times.append((perf_counter(), len(block.frames)))
        yield from block.frames[: count - made]
        made += len(block.frames)


def _prompts(chosen: argparse.Namespace, student: Student) -> list[str]:
    """What was asked for, refused before the first video if a text encoder cannot read it."""
    prompts = list(chosen.prompt)
    if chosen.prompts is not None:
        lines = [line.strip() for _, line in read_lines(chosen.prompts)]
        prompts += [line for line in lines if line]
        if not any(lines):
            raise ValueError(f"{chosen.prompts}: no prompts in it; write one a line")
    if not prompts:
        suggested = f", such as --prompt {student.captions[0]!r}" if student.captions else ""
        raise ValueError(f"what shall be seen? Give --prompt TEXT{suggested}, or --prompts FILE")
    if cut := student.beyond(prompts):
        log.warning("%s", cut)
    for prompt in prompts:
        student.embed(prompt)
    return prompts


def _walk(text: str | None, student: Student, given: bool) -> tuple[dict[int, list[Event]], int]:
    """The keys of each block, and the latent frames that they take; without keys a clip's.

    A first block of one frame, the image that is given or the student's own, has no keys: a walk
    begins there.
    """
    if text is None:
        return {}, student.clip_shape[0]
    try:
        walk = parse_keys(text)
    except ValueError as error:
        raise ValueError(f"--keys: {error}") from None
    if not walk:
        raise ValueError("--keys: there are none; write them as 'w*10, wl*3, none*2, left'")
    student.require_keys(frozenset().union(*walk))
    first = int(next(student.sizes(given)) == 1)
    events: dict[int, list[Event]] = {
        block: [NewKeys(tuple(keys))] for block, keys in enumerate([*walk, frozenset()], first)
    }
    return events, sum(islice(student.sizes(given), first + len(walk)))


def _files(chosen: argparse.Namespace, student: Student, prompts: list[str]) -> list[Path]:
    """The mp4 of each prompt."""
    out = chosen.out or OUT / student.name
    if out.suffix == ".mp4":
        if len(prompts) > 1:
            raise ValueError(f"--out: {out} is one file, but there are {len(prompts)} prompts")
        return [out]
    how = "".join(f"-{part}" for part in _chosen(chosen))
    return [out / f"{number:03d}-{_slug(prompt)}{how}.mp4" for number, prompt in enumerate(prompts)]


def _chosen(chosen: argparse.Namespace) -> list[str]:
    """What the command line chose for all videos, as their names say it."""
    numbers = {name: getattr(chosen, name) for name in ("steps", "frames", "window", "sinks")}
    parts = [f"{name}{value}" for name, value in ({"seed": chosen.seed} | numbers).items()
             if value or name == "seed"]  # fmt: skip
    parts += ["sinks-follow"] if chosen.sinks_follow else []
    parts += [f"keys-{_slug(chosen.keys)}"] if chosen.keys else []
    return parts + ([f"image-{chosen.image.stem}"] if chosen.image else [])


def _images(
    file: Path | None, student: Student, prompts: list[str]
) -> list[tuple[np.ndarray | None, Sequence[float] | None]]:
    """The first frame of each video, and where its camera was, if that is known: the file's, else
    that of a clip with this caption, if the student has any: one with cameras.
    """
    if file is not None:
        return [(image_of(file, student), None)] * len(prompts)
    found = [student.picture_for(prompt) for prompt in prompts]
    if any(found):
        log.info("a walk begins with the first frame of a clip with this caption (--image FILE)")
    return [(each.frame, each.start) if each else (None, None) for each in found]


def _slug(prompt: str) -> str:
    return "-".join(re.findall(r"\w+", prompt.lower()))[:40]


def image_of(file: Path, student: Student) -> np.ndarray:
    """A first frame from a file of ``--image``.

    Raises:
        FileNotFoundError, ValueError: it is not there, or no picture.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--image: {file}: no such file")
    return read_image(file, *student.size, student.autoencoder.pixel_channels)
