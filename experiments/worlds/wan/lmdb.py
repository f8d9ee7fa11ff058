"""The published LMDBs of latents and trajectories (CausVid, Self Forcing, Causal Forcing)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.curation.lmdb import LatentRows
from datamodules.curation.refusal import Refusal, Refused
from datamodules.curation.split import digest_of
from datamodules.shards.work import Sample, Work
from experiments.launch.hardware import launch_of, prepare
from experiments.launch.memory.check import before_encoding
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.wan.encoders import DTYPES, WanEncoders, check_dtypes
from lightning_modules.diffusion.flow import Solver
from lightning_modules.diffusion.visibility import partition
from lightning_modules.ranges import (
    Blocks,
    ClipShape,
    FrameRate,
    NoiseLevel,
    NonNegative,
    Positive,
    PositiveInt,
    SolverSteps,
)

KINDS = ("clips", "causal_pairs", "bidirectional_pairs")


@dataclass(frozen=True)
class Trajectory:
    """The section ``curate.trajectory``: how published pairs were made, for the manifest.

    Args:
        times: noise levels of the noisy states, falling; the clean end, 0, is left out.
        blocks: of the teacher, or of the student where the teacher is bidirectional.
        guidance, shift, intervals, solver: of the teacher's ODE.
        teacher: a name.
    """

    times: list[NoiseLevel]
    blocks: Blocks
    guidance: NonNegative | None = None
    shift: Positive | None = None
    intervals: SolverSteps | None = None
    solver: Solver | None = None
    teacher: str | None = None


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that do not fit, before anything is read."""
    check_dtypes(text_dtype=settings["text_dtype"])
    if settings["kind"] not in KINDS:
        raise ValueError(f"curate.kind: {settings['kind']!r} is none of {', '.join(KINDS)}")
    if settings["kind"] == "clips":
        return
    bound = bind(Trajectory, settings["trajectory"], section="curate.trajectory")
    if sorted(bound["times"], reverse=True) != bound["times"]:
        raise ValueError(f"curate.trajectory.times: {bound['times']} must fall")
    partition(bound["blocks"], settings["clip_shape"][0])


def plan(
    folder: RunFolder,
    seed: int,
    *,
    kind: str,
    clip_shape: ClipShape,
    fps: FrameRate,
    trajectory: dict[str, Any],
    text_dtype: str,
    items_per_shard: PositiveInt,
) -> Work:
    """Open the LMDB; nothing is embedded yet.

    Args:
        folder: of the run; needs ``latents`` (the LMDB) and ``wan``, whose VAE made them.
        seed: not used; all rows are converted, in order.
        kind: ``clips``: the last state of a row is a real clip. ``causal_pairs``: noisy states and
            the teacher's end point, then the real clip that was their clean context.
            ``bidirectional_pairs``: noisy states and the teacher's end point, no real clip.
        clip_shape: ``[F, C, h, w]`` that the rows must have.
        fps: of the clips.
        trajectory: of `Trajectory`; nothing for clips.
        text_dtype: ``float32`` or ``bfloat16``.
        items_per_shard: rows per shard.

    Raises:
        FileNotFoundError, ValueError: a folder or LMDB with wrong layout or statistics.
    """
    wan, device = folder.need("wan"), prepare(folder.recipe)
    encoders = WanEncoders(wan, device, "float32", text_dtype)
    before_encoding(wan, launch_of(folder.recipe), device, text_encoder=DTYPES[text_dtype])
    rows = LatentRows(folder.need("latents"))
    states = _states(kind, trajectory)
    if list(rows.shape) != [states, *clip_shape]:
        raise ValueError(
            f"{rows.path}: its rows are {list(rows.shape)} (states, frames, channels, height,"
            f" width), the recipe's {kind} are {[states, *clip_shape]}; set curate.clip_shape,"
            " curate.kind or curate.trajectory.times to what the set is"
        )
    rows.check_normalised()
    items = digest_of(rows.prompt(number) for number in range(len(rows)))
    about = {"source": "lmdb", "items": items, **trajectory, **encoders.about(fps)}
    if kind != "clips":
        about["past"] = kind.removesuffix("_pairs")
        about["blocks"] = list(partition(trajectory["blocks"], clip_shape[0]))

    def samples(numbers: Sequence[int]) -> Iterator[Sample | Refusal]:
        texts = encoders.texts([rows.prompt(number) for number in numbers])
        for number, text in zip(numbers, texts, strict=True):
            name = f"{number:06d}"
            try:
                rows.check(number)
            except Refused as why:
                yield Refusal(name, why.reason, why.detail)
                continue
            prompt, row = rows[number]
            yield name, _arrays(kind, row) | {"text": text}, {"caption": prompt}

    stored = "clips" if kind == "clips" else "pairs"
    numbers = range(len(rows))
    return Work(stored, about, numbers, samples, items_per_shard, encoders.negative)


def _states(kind: str, trajectory: dict[str, Any]) -> int:
    """How many states a row must have."""
    if kind == "clips":
        return 1
    return len(trajectory["times"]) + (2 if kind == "causal_pairs" else 1)


def _arrays(kind: str, row: np.ndarray) -> dict[str, np.ndarray]:
    """The fields of one row, [S, F, C, h, w]."""
    if kind == "clips":
        return {"latents": row[-1]}
    if kind == "bidirectional_pairs":
        return {"trajectory": row}
    return {"trajectory": row[:-1], "latents": row[-1]}
