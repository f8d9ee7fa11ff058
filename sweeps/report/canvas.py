"""What all figures share: an empty canvas, a line with its band, a legend, SVG for the page.

Figures have no background and their text is in `currentColor`, so that they take the page's light
or dark theme. matplotlib is imported inside, since planning and help must start at once.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeps.report.intervals import Estimate, t_interval

INK = "#123456"  # replaced by currentColor
LEGEND_WIDTH = 140  # letters in a row


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


def line(axis: Any, x: np.ndarray, curves: np.ndarray, hue: str, label: str, **style: Any) -> None:
    """The mean of `curves` [seeds, points] with Student's interval as a band."""
    axis.plot(x, curves.mean(0), color=hue, label=label, **({"ms": 3, "lw": 1.6} | style))
    low, high = band(curves)
    axis.fill_between(x, low, high, color=hue, alpha=0.18, lw=0)


def band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Student's interval at each point; of one seed the point itself."""
    if len(curves) < 2:
        return curves[0], curves[0]
    low, high = np.array([t_interval(values) for values in curves.T]).T
    mean = curves.mean(0)
    positive = (curves > 0).all(0)
    return np.where(positive, np.maximum(low, mean / 10), low), high


def dumbbell(axis: Any, place: int, hue: str, ends: list[Estimate | None]) -> None:
    """Two numbers at one height, the first hollow and the second filled, with pale intervals."""
    if all(ends):
        axis.plot([end.value for end in ends], [place, place], color=hue, lw=1.6, alpha=0.55)
    for end, face in zip(ends, ("none", hue), strict=True):
        if end is None:
            continue
        if end.low is not None:
            logarithmic = axis.get_xscale() == "log"
            low = max(end.low, end.value / 50) if logarithmic else end.low
            axis.plot([low, end.high], [place, place], color=hue, lw=4.5, alpha=0.25)
        axis.plot(end.value, place, "o", ms=6.5, mec=hue, mfc=face, mew=1.6)


def row_ticks(axis: Any, names: Sequence[str]) -> None:
    """Names of rows at the left, the first on top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def legend(figure: Any, axes: np.ndarray) -> None:
    """One legend below the figure for the labelled lines of all axes."""
    lines: dict[str, Any] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        lines = dict(zip(labels, handles, strict=True)) | lines
    if lines:
        columns = max(1, LEGEND_WIDTH // (max(map(len, lines)) + 6))
        figure.legend(
            lines.values(), lines.keys(), loc="outside lower center", ncols=columns, frameon=False
        )
