"""Results of a score run, read from its folder into plain values.

A value that was not measured is absent (None), never zero. Only finished runs are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from experiments.runs.folder import RunFolder
from experiments.runs.unchanged import check_result


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
    wording: str = ""  # of the prompts that VBench judged by


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


def read_json(path: Path) -> dict:
    """The JSON object in `path`; {} when there is no such file.

    Raises:
        ValueError: the file is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
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
            record.get("backend", {}).get("wording", ""),
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
    for line in path.read_text(encoding="utf-8").splitlines():
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
    check_result(RunFolder(folder))
    scores = folder / "scores.jsonl"
    if not scores.exists():
        raise ValueError(
            f"{folder} is marked done but has no scores.jsonl; delete it and run again"
        )
    curves = read_json(folder / "curves.json")
    return ScoreRun(folder, read_scores(scores), curves, samples)
