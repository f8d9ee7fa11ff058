"""The report's tables: few-step errors, students, modes, and the sizes of published bugs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.report.theory.figures import STEPS
from sweeps.report.theory.numbers import INITS, TheoryNumbers, number, shown


@dataclass(frozen=True)
class TextTable:
    """A table of texts with a title, and what to know to read it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


BUGS = {
    "law.bug.bf16_time": ("times in bf16: the flow map is told the wrong time", "RMSE"),
    "law.bug.bf16_step": ("times in bf16: CD's steps of the wrong length", "RMSE / step"),
    "law.bug.nearest_sigma": ("noise level looked up in a table of 1,000", "RMSE"),
    "law.bug.mixed_shift": ("states of a shift-8 trajectory labelled with shift 5", "RMSE"),
    "law.bug.noisy_commit": ("a clean past noised by 0.005, declared clean", "RMSE"),
    "law.bug.undone_context_noise": ("context noise 0.1 declared, none added", "RMSE"),
    "law.bug.no_terminal_pair": ("CD without its last pair: another fixed point", "RMSE"),
    "law.bug.guidance_3_as_4": ("guidance 3 read as 4, first frame", "energy distance"),
}


def tables(numbers: TheoryNumbers) -> list[TextTable]:
    """All tables of the report."""
    return [
        _energy(numbers),
        _students(numbers),
        _orders(numbers),
        _coverage(numbers),
        _bugs(numbers),
    ]


def _energy(numbers: TheoryNumbers) -> TextTable:
    rows = [
        [
            label,
            *(
                shown(numbers.margin(f"switching/{init}-{steps}/{run}/law.energy"))
                for run in ("before", "after")
                for steps in STEPS
            ),
        ]
        for init, label in INITS.items()
    ]
    floor = shown(numbers.margin("switching/real/floor/law.energy"))
    rows.append(["floor: real against real", *[floor] * 6])
    head = ["initialisation"]
    head += [f"{run} Stage 3, {n}-step" for run in ("before", "after") for n in STEPS]
    note = (
        "Energy distance of whole clips to held-out clips; lower is better. Pairs of one clip"
        " count, so that every number contains the floor. The first frame takes 4 steps throughout."
    )
    return TextTable("Few-step error in the switching world", head, rows, note)


def _students(numbers: TheoryNumbers) -> TextTable:
    columns = {
        "RMSE to the flow map": "before/law.flow_map",
        "of it from pure noise": "before/law.flow_map:from_noise",
        "Gaussian world": "gaussian",
        "conditional variance / law's": "before/law.next.variance",
        "next frame, no shift": "before/law.history.to_shifted@0",
        "shift 4": "before/law.history.to_shifted@-1",
        "rise with history shift": "before/law.history",
        "rise after Stage 3": "after/law.history",
    }
    rows = []
    for init, label in INITS.items():
        row = [label]
        for address in columns.values():
            place = f"switching/{init}/{address}"
            if address == "gaussian":
                place = f"gaussian/{init}/before/law.flow_map"
            known = place.rpartition("/")[0] in numbers.runs
            row.append(shown(numbers.margin(place)) if known else "-")
        rows.append(row)
    note = (
        "Switching world but for the third column. Conditional variance: of the next frame given"
        " the true past, 4 steps, 1 is right. Next frame: its energy distance to the law given the"
        " past that it sees, which is shifted by 0 or 4 times the law's noise. Rise: from 0 to 4."
    )
    return TextTable("Students beside the exact flow map", ["initialisation", *columns], rows, note)


def _orders(numbers: TheoryNumbers) -> TextTable:
    """Errors from pure noise by intervals, and the order between 4 and 16 of them."""
    counts, rows = (4, 8, 16), []
    law = {
        solver: _errors_of_law(numbers, f"gaussian/law/facts/law.order.{solver}")
        for solver in ("euler", "heun")
    }
    if all(law.values()):
        errors = [law["euler"][n] for n in counts]
        order = math.log(errors[0] / errors[-1]) / math.log(4)
        cells = [*errors, order, law["heun"][4]]
        rows.append(["the exact teacher, solved", *map(number, cells)])
    for init in ("causal_ode", "causal_cd"):
        places = {
            (solver, n): f"gaussian/{init}-{solver}-{n}/before/law.flow_map:from_noise"
            for solver, n in [*(("euler", n) for n in counts), ("heun", 4)]
        }
        cells = [numbers.margin(places["euler", n]) for n in counts]
        cells.append(numbers.order(places["euler", 4], places["euler", 16], 4))
        rows.append([INITS[init], *map(shown, [*cells, numbers.margin(places["heun", 4])])])
    head = ["", *(f"Euler, {n} intervals" for n in counts), "order, 4 to 16", "Heun, 4 intervals"]
    note = "RMSE to the exact flow map from pure noise; the order of Euler is 1 in the limit."
    return TextTable("Error against intervals in the Gaussian world", head, rows, note)


def _errors_of_law(numbers: TheoryNumbers, place: str) -> dict[int, float]:
    """The exact teacher's error by its intervals; empty when it was not measured."""
    counts, errors = (numbers.curve(f"{place}.{name}") for name in ("intervals", "errors"))
    if counts is None or errors is None:
        return {}
    return dict(zip(counts[0].astype(int).tolist(), errors[0].tolist(), strict=True))


def _coverage(numbers: TheoryNumbers) -> TextTable:
    columns = {
        "precision ↑": "law.precision",
        "recall ↑": "law.recall",
        "KL(law ‖ gen.) ↓": "law.modes.kl_covering",
        "KL(gen. ‖ law) ↓": "law.modes.kl_seeking",
        "spread (1 is right)": "law.spread",
        "sliced W1 ↓": "law.sliced_wasserstein",
        "drift per frame ↓": "law.energy_drift",
    }
    rows = [
        [f"{INITS[init]}, {steps}-step", *(
            shown(numbers.margin(f"switching/{init}-{steps}/before/{m}")) for m in columns.values()
        )]
        for init in INITS
        for steps in STEPS
    ]  # fmt: skip
    floor = [shown(numbers.margin(f"switching/real/floor/{m}")) for m in columns.values()]
    rows.append(["floor: real against real", *floor])
    note = (
        "Before Stage 3. Precision: share of clips as dense under the law as 99% of held-out ones."
        " Recall: k-nearest-neighbour balls. Modes: component of the first frame and all turns."
    )
    title = "Modes, precision and recall in the switching world"
    return TextTable(title, ["student", *columns], rows, note)


def _bugs(numbers: TheoryNumbers) -> TextTable:
    rows = [
        [what, unit, *(
            shown(numbers.margin(f"{world}/law/facts/{metric}"))
            if numbers.margin(f"{world}/law/facts/{metric}") or not numbers.done[0]
            else "-"
            for world in ("switching", "gaussian")
        )]
        for metric, (what, unit) in BUGS.items()
    ]  # fmt: skip
    note = (
        "Each switched on where it lives, with the published grid (48 intervals, shift 5), but for"
        " CD's last pair (the world's grid: 24 intervals, shift 2), guidance (48 intervals, shift"
        " 2) and the trajectory (its four stored states). RMSE of a frame, to be read beside the"
        " law's noise: 0.15 in the switching world."
    )
    return TextTable(
        "Sizes of published bugs", ["bug", "measured as", "switching", "Gaussian"], rows, note
    )
