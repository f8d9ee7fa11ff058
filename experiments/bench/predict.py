"""Table 2's Stage-2 columns from measured times at the paper's counts, against the printed ones.

    time      pairs x seconds a pair + steps x batch x seconds a clip in training, on one device
    storage   pairs x stored states x values of a clip x 2 bytes

Times are of one clip per step on one device, without communication and data loading. Pairs with
another number of intervals are scaled to 48.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from statistics import mean
from typing import Any

PAIRS = 80_000
BATCH = 64
STEPS = 5_000
INTERVALS = 48
STAGE = "stage2_"  # prefix of the recipes of the initialisations
PRINTED = {  # A800-hours, GiB: Causal Forcing++, Table 2
    "self_forcing_ode": (5_000, 1_500),
    "causal_ode": (11_600, 1_900),
    "causal_dmd": (2_900, 0),
    "causal_cd": (2_900, 0),
}


def stage2(rows: Sequence[Mapping[str, Any]], clip_shape: Sequence[int]) -> dict[str, Any]:
    """Hours and storage, ours and the paper's, of each initialisation whose training was measured.

    Hours are None where its pairs were not measured, the paper's numbers where it prints none.
    """
    steps: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("recipe", "").startswith(STAGE):
            steps.setdefault(row["recipe"].removeprefix(STAGE), []).append(row)
    found = {init: _one(init, own, rows, clip_shape) for init, own in steps.items()}
    ode, cd = (found.get(init, {}).get("device_hours") for init in ("causal_ode", "causal_cd"))
    return {
        "counts": {"pairs": PAIRS, "batch": BATCH, "steps": STEPS, "intervals": INTERVALS},
        "initialisations": found,
        "causal_ode_to_causal_cd": {"ours": ode / cd if ode and cd else None, "paper": 4.0},
    }


def _one(
    init: str,
    steps: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    clip_shape: Sequence[int],
) -> dict[str, Any]:
    hours, storage = PRINTED.get(init, (None, None))
    parts = {"training": _training(steps)}
    if reads := steps[0].get("reads"):
        parts["pairs"] = _pairs(reads, rows)
    known = None not in parts.values()
    return {
        "device_hours": sum(parts.values()) if known else None,
        "of_which": parts,
        "paper_a800_hours": hours,
        "storage_gib": PAIRS * steps[0].get("states", 0) * prod(clip_shape) * 2 / 2**30,
        "paper_storage_gib": storage,
    }


def _training(steps: Sequence[Mapping[str, Any]]) -> float:
    """Device-hours; of DMD 5,000 critic updates and a fifth as many of the student."""
    counts = {"student": STEPS / 5}
    return sum(_step(row) * counts.get(row["turn"], STEPS) for row in steps) * BATCH / 3600


def _step(row: Mapping[str, Any]) -> float:
    """Seconds a clip: of DMD, whose exit is drawn by chance, the expectation."""
    return row.get("expected_s", mean(row["seconds"])) / row["clips"]


def _pairs(past: str, rows: Sequence[Mapping[str, Any]]) -> float | None:
    for row in rows:
        if row.get("past") == past:
            a_pair = mean(row["seconds"]) / row["clips"] * INTERVALS / row["intervals"]
            return PAIRS * a_pair / 3600
    return None
