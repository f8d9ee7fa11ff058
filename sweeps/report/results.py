"""What the runs of a sweep measured, read from their folders into plain values.

The table, the claims and the page know nothing of run folders: all they show comes from `Results`.
A value that was not measured is absent (None), never zero. Only finished runs are read.

A cell is one entry of the table: (init, few_steps, seed). `stage3` are its scores, `stage2` the
scores of the network that Stage 3 started from, sampled with the same number of steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

Key = tuple[str, int, int]  # init, few_steps, seed


@dataclass(frozen=True)
class Score:
    """One record of `scores.jsonl`: a value with its 95% interval over prompts, and n clips."""

    metric: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    unit: str = ""
    kind: str = ""
    higher_is_better: bool | None = None
    calibration: str = ""  # hash of the constants behind it
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreRun:
    """A finished score run: scores by metric id, curves by frame index, the clips it saw."""

    folder: Path
    scores: Mapping[str, Score]
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    samples: Path | None = None

    @cached_property
    def per_clip(self) -> dict[str, np.ndarray]:
        """Arrays [n] or [n, F] by metric id, and the clips' keys as `key`; {} when none."""
        path = self.folder / "per_clip.npz"
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


@dataclass(frozen=True)
class Cost:
    """What Stage 2 of a cell cost: device-seconds (pairs included), stored bytes, steps."""

    seconds: float | None
    storage: int | None
    steps: int | None
    pairs_seconds: float = 0.0
    device: str = ""


@dataclass(frozen=True)
class Cell:
    """One entry of the table as far as it has been run; `state` is the runner's word."""

    init: str
    few_steps: int
    seed: int
    state: str = "not run"
    stage3: ScoreRun | None = None
    stage2: ScoreRun | None = None
    cost: Cost | None = None


@dataclass(frozen=True)
class Results:
    """All cells of a sweep, provenance, and reference rows by init: a score run for each seed that
    has one of its own, none while not run.
    """

    cells: Mapping[Key, Cell]
    references: Mapping[str, Sequence[ScoreRun]] = field(default_factory=dict)
    real: Sequence[Path] = ()  # folders that may hold the real clips of the prompts
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Every seed with a cell, sorted."""
        return sorted({seed for _, _, seed in self.cells})

    @property
    def steps(self) -> list[int]:
        """Every step count with a cell, sorted."""
        return sorted({steps for _, steps, _ in self.cells})

    def of(self, init: str, few_steps: int) -> list[Cell]:
        """The cells of one row of one block, one per seed, in the order of the seeds."""
        found = (self.cells.get((init, few_steps, seed)) for seed in self.seeds)
        return [cell for cell in found if cell is not None]


def read_json(path: Path) -> dict:
    """The JSON object in `path`; {} when there is no such file.

    Raises:
        ValueError: the file is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); delete its run folder and run again"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; delete its run folder and run again")
    return value


def _score(record: Mapping, path: Path) -> Score | None:
    try:
        value = record["value"]
        low, high = record.get("ci95") or (None, None)
        if value is None or not math.isfinite(value):
            return None
        return Score(
            record["metric"], float(value), int(record["n"]), low, high,
            record.get("unit") or "", record.get("kind") or "", record.get("higher_is_better"),
            record.get("calibration") or "", record.get("extra") or {},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: a record is not as scores.jsonl should be ({error!r}): {dict(record)}"
        ) from None


def read_scores(path: Path) -> dict[str, Score]:
    """The records of a `scores.jsonl` by metric id; null or not finite means not measured.

    Raises:
        ValueError: a line is not a score record (the file is named).
    """
    scores = {}
    for line in path.read_text().splitlines():
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: a line is not JSON ({error}); score again") from None
            score = _score(record, path)
            if score is not None:
                scores[score.metric] = score
    return scores


def read_score_run(folder: Path | None, samples: Path | None = None) -> ScoreRun | None:
    """A score run's results, or None while it is not done."""
    if folder is None or not (folder / "done.json").exists():
        return None
    scores = folder / "scores.jsonl"
    if not scores.exists():
        raise ValueError(
            f"{folder} is marked done but has no scores.jsonl; delete it and run again"
        )
    curves = read_json(folder / "curves.json")
    return ScoreRun(folder, read_scores(scores), curves, samples)
