"""The report's figures: inline SVG whose title is the claim, with units, floors and intervals.

Each function returns "" when nothing of it was run. Points are means over seeds, bands and bars
Student's 95% intervals; what has one value for all seeds has none.
"""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill
from typing import Any

import numpy as np

from sweeps.report.figures import COLOURS, INK, canvas
from sweeps.report.theory.numbers import INITS, TheoryNumbers
from sweeps.report.theory.panels import band, finished, line, turns

STEPS = (1, 2, 4)
WORLDS = {"switching": "switching world", "gaussian": "Gaussian world"}


def residuals(numbers: TheoryNumbers) -> str:
    """Residual of both ODE regressions by frame, students beside what the law leaves."""
    figure, axes = canvas(1, 2, 9.6, 3.4, sharey="row")
    rows = [
        ("law/facts/law.injectivity.bidirectional.by_frame", "least possible, bidirectional ODE",
         "self_forcing_ode", "--"),
        ("self_forcing_ode/before/law.residual.bidirectional.by_frame", "SF-ODE student",
         "self_forcing_ode", "-"),
        ("law/facts/law.injectivity.causal.by_frame", "least possible, AR teacher's ODE",
         "causal_ode", "--"),
        ("causal_ode/before/law.residual.causal.by_frame", "causal ODE student", "causal_ode", "-"),
    ]  # fmt: skip
    drawn = False
    for axis, (world, title) in zip(axes[0], WORLDS.items(), strict=True):
        for address, label, init, style in rows:
            curve = numbers.curve(f"{world}/{address}")
            if curve is not None:
                drawn = True
                index = np.arange(1, curve.shape[1] + 1)
                line(axis, index, curve, COLOURS[init], label, style)
        axis.set_title(title)
        axis.set_xlabel("frame index")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("mean square of the regression from\npure noise [squared frame units]")
    claim = "a bidirectional teacher's ODE leaves a residual that no causal student can lose"
    return finished(figure, axes, "residuals", claim, drawn)


def intervals(numbers: TheoryNumbers) -> str:
    """Error of the end of the AR ODE from pure noise against intervals: solvers, and students
    taught by them.
    """
    figure, axes = canvas(1, 2, 9.6, 3.8, sharey="row")
    drawn = False
    for solver, marker, order in (("euler", "s", 1), ("heun", "^", 2)):
        curve = numbers.curve(f"gaussian/law/facts/law.order.{solver}.errors")
        if curve is None:
            continue
        drawn = True
        count = numbers.curve(f"gaussian/law/facts/law.order.{solver}.intervals")[0]
        slope = numbers.margin(f"gaussian/law/facts/law.order.{solver}").value
        label = f"{solver.capitalize()}: slope −{slope:.2f} (theory −{order})"
        axes[0, 0].plot(count, curve[0], color=INK, marker=marker, ms=4, lw=1.3, label=label)
        for init in ("causal_ode", "causal_cd"):
            drawn |= _students(axes[0, 1], numbers, init, solver, marker)
    for axis, title in zip(axes[0], ("the exact teacher, solved", "students"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(title)
        axis.set_xlabel("intervals of the grid")
        axis.xaxis.set_major_formatter("{x:.0f}")
    axes[0, 0].set_ylabel("RMSE to the exact flow map\nfrom pure noise [frame units]")
    claim = "the error falls with the number of intervals as the solver's order says"
    return finished(figure, axes, "intervals", claim, drawn)


def flow_map(numbers: TheoryNumbers) -> str:
    """RMSE to the exact flow map by noise level and by frame."""
    figure, axes = canvas(1, 2, 9.6, 3.6, sharey="row")
    drawn = False
    for init, label in INITS.items():
        place = f"switching/{init}/before/law.flow_map"
        times, curve = numbers.curve(f"{place}.times"), numbers.curve(f"{place}.by_time")
        if curve is None:
            continue
        drawn = True
        line(axes[0, 0], times[0], curve, COLOURS[init], label)
        frames = numbers.curve(f"{place}.by_frame")
        line(axes[0, 1], np.arange(1, frames.shape[1] + 1), frames, COLOURS[init], label)
    axes[0, 0].set_xlabel("noise level σ (1: pure noise)")
    axes[0, 1].set_xlabel("frame index")
    axes[0, 1].xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("RMSE to the exact flow map\n[frame units]")
    claim = "causal ODE and causal CD learn the AR teacher's flow map, SF-ODE another one"
    return finished(figure, axes, "flow-map", claim, drawn)


def energy(numbers: TheoryNumbers) -> str:
    """Energy distance of clips by initialisation and steps, before and after Stage 3."""
    figure, axes = canvas(1, 3, 10.6, 3.3, sharey="row", sharex="row")
    floor = numbers.margin("switching/real/floor/law.energy")
    drawn = False
    for axis, steps in zip(axes[0], STEPS, strict=True):
        for place, init in enumerate(INITS):
            ends = [
                numbers.margin(f"switching/{init}-{steps}/{run}/law.energy")
                for run in ("before", "after")
            ]
            drawn |= any(ends)
            if all(ends):
                values = [end.value for end in ends]
                axis.plot(values, [place, place], color=COLOURS[init], lw=1.6, alpha=0.55)
            for end, face, name in zip(
                ends, ("none", COLOURS[init]), ("before Stage 3", "after Stage 3"), strict=True
            ):
                if end is None:
                    continue
                if end.low is not None:
                    low = max(end.low, end.value / 50)  # the axis is logarithmic
                    axis.plot([low, end.high], [place] * 2, color=COLOURS[init], lw=5, alpha=0.25)
                label = name if init == "causal_cd" else None
                axis.plot(end.value, place, "o", ms=6.5, mec=COLOURS[init], mfc=face, mew=1.6,
                          ls="none", label=label)  # fmt: skip
        if floor:
            axis.axvline(floor.value, color=INK, ls=":", lw=1.2, label="real against real")
        axis.set_xscale("log")
        axis.set_yticks(range(len(INITS)), INITS.values())
        axis.set_ylim(len(INITS) - 0.5, -0.5)
        axis.set_title(f"{steps} sampling step{'s' if steps > 1 else ''}")
        axis.set_xlabel("energy distance of clips\nto the law [frame units]")
    claim = "the initialisation decides the few-step error, before Stage 3 and after"
    return finished(figure, axes, "energy", claim, drawn)


def drift(numbers: TheoryNumbers) -> str:
    """Energy distance of frames by their index, 4 steps, before and after Stage 3."""
    figure, axes = canvas(1, 2, 9.6, 3.6, sharey="row")
    drawn = False
    floor = numbers.curve("switching/real/floor/law.energy_drift.by_frame")
    for axis, run in zip(axes[0], ("before", "after"), strict=True):
        for init, label in INITS.items():
            curve = numbers.curve(f"switching/{init}-4/{run}/law.energy_drift.by_frame")
            if curve is not None:
                drawn = True
                index = np.arange(1, curve.shape[1] + 1)
                line(axis, index, curve, COLOURS[init], label)
        if floor is not None:
            index = np.arange(1, floor.shape[1] + 1)
            axis.plot(index, floor[0], color=INK, ls=":", lw=1.2, label="real against real")
        axis.set_yscale("log")
        axis.set_title(f"{run} Stage 3, 4 sampling steps")
        axis.set_xlabel("frame index")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("energy distance of frames\nto the law [frame units]")
    claim = "causal DMD drifts more: its frames move from the law with their index"
    return finished(figure, axes, "drift", claim, drawn)


def history(numbers: TheoryNumbers) -> str:
    """Distance of the next frame against the shift of the history, by both references."""
    figure, axes = canvas(1, 2, 9.6, 3.6)
    drawn = False
    titles = {
        "to_shifted": "to the law given the shifted history (an exact sampler: 0)",
        "to_true": "to the law given the true history",
    }
    for axis, (name, title) in zip(axes[0], titles.items(), strict=True):
        for init, label in INITS.items():
            place = f"switching/{init}/before/law.history"
            curve, shifts = numbers.curve(f"{place}.{name}"), numbers.curve(f"{place}.shifts")
            if curve is None:
                continue
            if name == "to_true" and not _has_exact(axis):
                exact = numbers.curve(f"{place}.exact_to_true").mean(0)
                axis.plot(shifts[0], exact, color=INK, ls=":", lw=1.2, label="exact sampler")
            drawn = True
            line(axis, shifts[0], curve, COLOURS[init], label)
        axis.set_title(fill(title, 46))
        axis.set_xlabel("shift of the history [multiples of the law's noise]")
    axes[0, 0].axhline(0, color=INK, ls=":", lw=1.2, label="exact sampler")
    axes[0, 0].set_ylabel("energy distance of the next frame\n[frame units]")
    claim = "causal DMD suffers more from a history that is off (Fig. 5b as a measurement)"
    return finished(figure, axes, "history", claim, drawn)


def _has_exact(axis: Any) -> bool:
    """Whether the exact sampler's line is there already."""
    return any(line.get_label() == "exact sampler" for line in axis.get_lines())


def branches(numbers: TheoryNumbers) -> str:
    """Share of clips that take each sequence of turns, before Stage 3."""
    figure, axes = canvas(1, 3, 10.6, 3.3, sharey="row")
    drawn = False
    for axis, steps in zip(axes[0], STEPS, strict=True):
        for offset, (init, label) in enumerate(INITS.items()):
            curve = numbers.curve(f"switching/{init}-{steps}/before/law.modes.kl_covering.turns")
            if curve is None:
                continue
            drawn = True
            count = curve.shape[1]
            at = np.arange(count) + (offset - 2) * 0.13
            low, high = band(curve)
            axis.vlines(at, low, high, color=COLOURS[init], lw=3, alpha=0.3)
            axis.plot(at, curve.mean(0), "o", ms=3.5, color=COLOURS[init], label=label)
            axis.set_xticks(range(count), turns(count), rotation=90)
            axis.axhline(1 / count, color=INK, ls=":", lw=1.2, label="the law")
        axis.set_title(f"{steps} sampling step{'s' if steps > 1 else ''}")
        axis.set_xlabel("turns of a clip (L: left, R: right)")
    axes[0, 0].set_ylabel("share of clips")
    axes[0, 0].set_ylim(bottom=0)
    claim = "the law takes all sequences of turns alike; a student that seeks modes misses some"
    return finished(figure, axes, "branches", claim, drawn)


FIGURES: dict[str, Callable[[TheoryNumbers], str]] = {
    "residuals": residuals,
    "intervals": intervals,
    "flow-map": flow_map,
    "energy": energy,
    "drift": drift,
    "history": history,
    "branches": branches,
}
"""All figures in the order of the report."""


def _students(axis: Any, numbers: TheoryNumbers, init: str, solver: str, marker: str) -> bool:
    """Errors of the students taught with a solver; whether there are any."""
    counts = (4, 8, 16) if solver == "euler" else (4,)
    places = {n: f"gaussian/{init}-{solver}-{n}/before/law.flow_map:from_noise" for n in counts}
    found = {n: margin for n, place in places.items() if (margin := numbers.margin(place))}
    if not found:
        return False
    at, values = np.array(list(found)), np.array([m.value for m in found.values()])
    label = f"{INITS[init]}, {solver.capitalize()}"
    if solver == "euler" and (order := numbers.order(places[4], places[16], 4)):
        label += f": slope −{order.value:.2f}"
    style = "-" if solver == "euler" else "--"
    axis.plot(at, values, color=COLOURS[init], marker=marker, ms=4.5, lw=1.4, ls=style, label=label)
    for n, margin in found.items():
        if margin.low is not None:
            ends = [max(margin.low, margin.value / 10), margin.high]
            axis.plot([n, n], ends, color=COLOURS[init], lw=4, alpha=0.25)
    return True
