"""Scores on disk: scores.jsonl (one record a metric), per_clip.npz, curves.json; each written
atomically.

A record never holds a time or a path of this machine, so equal inputs give equal bytes.
"""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.atomic import write_bytes, write_text
from experiments.metrics.registry import Measurement, Metric


def record(metric: Metric, found: Measurement, about: dict[str, Any]) -> dict[str, Any]:
    """One line of scores.jsonl.

    Args:
        about: inputs, versions, calibration: the same for all metrics of a run.
    """
    return {
        "suite": metric.id.partition(".")[0],
        "metric": metric.id,
        "name": metric.name,
        "kind": metric.kind,
        "scope": metric.scope,
        "value": _finite(found.value),
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "n": found.n,
        "ci95": None if found.interval is None else [_finite(v) for v in found.interval],
        "per_sample": None if found.per_clip is None else f"per_clip.npz:{metric.id}",
        "extra": found.extra,
        "skipped": found.skipped,
        **about,
    }


def write(
    folder: Path,
    found: list[tuple[Metric, Measurement]],
    keys: list[str],
    curves: dict[str, list[float]],
    about: dict[str, Any],
) -> None:
    """Write the three files; per_clip.npz also holds the clips' keys under `key` (unicode [N]).

    A measurement's own curves stand in curves.json as `<metric>.<name>`.
    """
    curves = curves | {f"{m.id}.{name}": c for m, f in found for name, c in f.curves.items()}
    arrays = {m.id: f.per_clip.astype(np.float64) for m, f in found if f.per_clip is not None}
    _write_npz(folder / "per_clip.npz", {"key": np.array(keys), **arrays})
    write_text(folder / "curves.json", json.dumps(curves, indent=1, sort_keys=True))
    lines = [json.dumps(record(m, f, about), allow_nan=False) for m, f in found]
    write_text(folder / "scores.jsonl", "\n".join(lines) + "\n")


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue(), many=True)
