"""The page's figures as inline SVG: drift by frame index, Stage 2 against Stage 3, and cost.

Each function returns an SVG string without a background, its text in `currentColor`, so that it
takes the page's light or dark theme; or "" when nothing was measured. matplotlib is imported
inside, since planning and help must start at once.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np

from sweeps.report.intervals import Margin, OurNumbers, Quantity, Row, Term
from sweeps.report.layout import human_bytes

INK = "#123456"  # replaced by currentColor
REAL = "held-out real clips"
COLOURS = {
    "self_forcing_ode": "#d55e00",
    "ar_diffusion": "#8f8f8f",
    "causal_ode": "#3b8fd6",
    "causal_dmd": "#c763a5",
    "causal_cd": "#009e73",
}
SPARE_COLOURS = ("#b5890d", "#7a6fd0", "#5f9ea0")


def colour(init: str, inits: Sequence[str]) -> str:
    """An init's colour, the same in every figure."""
    return COLOURS.get(init, SPARE_COLOURS[list(inits).index(init) % len(SPARE_COLOURS)])


def canvas(
    rows: int, columns: int, width: float, height: float, **shared: str
) -> tuple[Any, np.ndarray]:
    """An empty figure and its axes `[rows, columns]`, in the page's ink; sizes in inches."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({
        "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 10, "axes.linewidth": 0.7, "grid.alpha": 0.18, "grid.color": INK,
        "axes.grid": True, "axes.axisbelow": True,
    })  # fmt: skip
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def svg(figure: Any, name: str) -> str:
    """A figure as SVG text whose ids begin with `name` and whose ink is the page's text colour."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same figure gives the same text
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Figures stand side by side in one page, and ids must differ there.
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)


def _curves(numbers: OurNumbers, row: Row, metric: str) -> np.ndarray | None:
    """A metric by frame index of the finished seeds, float [seeds, F]."""
    runs = [cell.stage3 for cell in numbers.results.of(*row)]
    found = [run.curves[metric] for run in runs if run and metric in run.curves]
    return np.asarray(found, float) if found else None


def drift(numbers: OurNumbers) -> str:
    """One panel per curve and step count: a line per init over the frame index, band = seeds."""
    layout, steps = numbers.layout, numbers.results.steps
    runs = [cell.stage3 for cell in numbers.results.cells.values() if cell.stage3]
    curves = {
        c["metric"]: c
        for c in layout["curves"].values()
        if any(c["metric"] in run.curves for run in runs)
    }
    if not curves:
        return ""
    size = 3.7 * len(steps) + 0.6, 2.5 * len(curves) + 0.5
    figure, axes = canvas(len(curves), len(steps), *size, sharey="row")
    for down, (metric, curve) in enumerate(curves.items()):
        for across, count in enumerate(steps):
            axis = axes[down, across]
            _drift_panel(axis, numbers, count, metric)
            if down == 0:
                axis.set_title(f"{count} sampling step{'s' if count > 1 else ''}")
            if down == len(curves) - 1:
                axis.set_xlabel("frame index")
        unit = f" [{curve['unit']}]" if curve["unit"] else ""
        arrow = "↓" if curve["better"] == "lower" else "↑"
        axes[down, 0].set_ylabel(fill(f"{curve['heading']}{unit} {arrow}", 26))
    drawn = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    lines = [drawn[name] for name in (*layout["rows"].values(), REAL) if name in drawn]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    return svg(figure, "drift")


def _drift_panel(axis: Any, numbers: OurNumbers, count: int, metric: str) -> None:
    inits = list(numbers.layout["rows"])
    for init, label in numbers.layout["rows"].items():
        values = _curves(numbers, (init, count), metric)
        if values is None:
            continue
        index, hue = np.arange(values.shape[1]), colour(init, inits)
        axis.plot(index, values.mean(0), color=hue, marker="o", ms=3, lw=1.6, label=label)
        if len(values) > 1:
            axis.fill_between(index, values.min(0), values.max(0), color=hue, alpha=0.18, lw=0)
    ceiling = next(iter(numbers.results.references.get("ceiling", ())), None)
    if ceiling and metric in ceiling.curves:
        axis.plot(ceiling.curves[metric], color=INK, ls=":", lw=1.2, label=REAL)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _margin(numbers: OurNumbers, column: str, row: Row, stage: int) -> Margin | None:
    return numbers.combine([Term(Quantity(column, stage), row, 1.0)])


def stages(numbers: OurNumbers, columns: Sequence[str] = ("total", "fd_pairs")) -> str:
    """Stage 2 (hollow) against Stage 3 (filled) for each init: one panel per column and steps."""
    layout, counts = numbers.layout, numbers.results.steps
    inits = list(layout["rows"])
    shown = [
        column
        for column in columns
        if column in layout["columns"]
        and any(_margin(numbers, column, (i, s), 3) for i in inits for s in counts)
    ]
    if not shown:
        return ""
    size = 3.6 * len(counts) + 0.9, 2.2 * len(shown) + 0.2
    figure, axes = canvas(len(shown), len(counts), *size, sharex="row", sharey="row")
    for down, column in enumerate(shown):
        entry = layout["columns"][column]
        for across, count in enumerate(counts):
            axis = axes[down, across]
            for place, init in enumerate(inits):
                ends = [_margin(numbers, column, (init, count), stage) for stage in (2, 3)]
                _dumbbell(axis, place, colour(init, inits), ends)
            axis.set_yticks(range(len(inits)), layout["rows"].values())
            axis.set_ylim(len(inits) - 0.5, -0.5)
            arrow = "lower is better" if entry["better"] == "lower" else "higher is better"
            unit = f" [{entry['unit']}]" if entry["unit"] else ""
            axis.set_xlabel(f"{entry['heading']}{unit}, {arrow}")
            if down == 0:
                axis.set_title(f"{count} sampling step{'s' if count > 1 else ''}")
    return svg(figure, "stages")


def _dumbbell(axis: Any, place: int, hue: str, ends: Sequence[Margin | None]) -> None:
    if all(ends):
        axis.plot([end.value for end in ends], [place, place], color=hue, lw=1.6, alpha=0.55)
    for end, face in zip(ends, ("none", hue), strict=True):
        if end is None:
            continue
        if end.low is not None:
            axis.plot([end.low, end.high], [place, place], color=hue, lw=4.5, alpha=0.25)
        axis.plot(end.value, place, "o", ms=6.5, mec=hue, mfc=face, mew=1.6)


def cost(numbers: OurNumbers) -> str:
    """Stage-2 device-seconds per init, curation of pairs and training stacked; storage as text."""
    costs: dict[str, Mapping] = {}
    for init in numbers.layout["rows"]:
        cells = [c for s in numbers.results.steps for c in numbers.results.of(init, s) if c.cost]
        timed = [c.cost for c in cells if c.cost.seconds is not None]
        if timed:
            costs[init] = {
                "pairs": np.mean([c.pairs_seconds for c in timed]),
                "training": np.mean([c.seconds - c.pairs_seconds for c in timed]),
                "storage": np.mean([c.storage or 0 for c in timed]),
            }
    if not costs:
        return ""
    figure, ((axis,),) = canvas(1, 1, 8.2, 0.42 * len(costs) + 1.1)
    inits = list(numbers.layout["rows"])
    for place, (init, spent) in enumerate(costs.items()):
        hue = colour(init, inits)
        axis.barh(place, spent["pairs"], 0.6, color=hue, alpha=0.4)
        axis.barh(place, spent["training"], 0.6, left=spent["pairs"], color=hue)
        total = spent["pairs"] + spent["training"]
        label = f"{total:,.0f} s, {human_bytes(spent['storage'])} stored"
        axis.annotate(label, (total, place), (5, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(costs)), [numbers.layout["rows"][init] for init in costs])
    axis.set_ylim(len(costs) - 0.5, -0.5)
    axis.set_xlim(0, 1.35 * max(c["pairs"] + c["training"] for c in costs.values()))
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("Stage-2 time [device-seconds]; pale: curation of pairs, solid: training")
    return svg(figure, "cost")
