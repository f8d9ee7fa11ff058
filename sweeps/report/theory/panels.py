"""What the report's figures share: a line with its band, a legend below, the claim above."""

from __future__ import annotations

from typing import Any

import numpy as np

from sweeps.report.figures import svg
from sweeps.report.intervals import t_interval

LEGEND_WIDTH = 140  # letters in a row


def line(
    axis: Any, x: np.ndarray, curves: np.ndarray, hue: str, label: str, style: str = "-"
) -> None:
    """The mean of `curves` [seeds, points] with Student's interval as a band."""
    axis.plot(x, curves.mean(0), color=hue, ls=style, marker="o", ms=3, lw=1.6, label=label)
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


def turns(count: int) -> list[str]:
    """Names of the sequences of turns in the order of their numbers (the first turn is bit 0)."""
    length = count.bit_length() - 1
    return ["".join("L" if n >> i & 1 else "R" for i in range(length)) for n in range(count)]


def finished(figure: Any, axes: np.ndarray, name: str, claim: str, drawn: bool) -> str:
    """A figure with the claim it is about as its title and one legend, as SVG; "" when nothing was
    drawn. Whether the claim holds is the statements' affair.
    """
    if not drawn:
        return ""
    lines: dict[str, Any] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    figure.suptitle(f"Claim: {claim}", fontsize=11, fontweight="bold")
    columns = max(1, LEGEND_WIDTH // (max(map(len, lines)) + 6))
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=columns, frameon=False
    )
    return svg(figure, name)
