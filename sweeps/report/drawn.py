"""Figures as described in a layout's `figures`, each titled by a claim::

    - id: flow-map
      claim: causal CD learns the AR teacher's flow map
      size: [9.6, 3.6]                   # inches
      y: "RMSE [frame units]"
      log: y                             # and x, or both: xy
      panels:
        - title: by frame
          x: frame index
          base: 2                        # of a logarithmic axis
          lines:                         # an address of a curve, or a list of numbers' addresses
            - {each: {init: init}, of: "{init}", y: "{init}/before/law.flow_map.by_frame"}
          dumbbells:                     # two numbers at the height of a row
            - {each: {init: init}, of: "{init}", ends: [ADDRESS, ADDRESS]}
          points:                        # shares of the sequences of turns side by side
            - {each: {init: init}, of: "{init}", y: ADDRESS, even: label of equal shares}
          levels: [{x: ADDRESS, label: floor}]  # a dotted line; y for one across

Of a line: `x` is an address or a list of numbers and addresses (left out: 1, 2, ...), `label` a
text with the names of `each` (left out: the name of `of`), `slope` a number at the label's end,
`style` matplotlib's. The panels share their y axis, unless the figure says `shared: false` or they
have dumbbells of different rows.
Points are means over seeds, bands and bars Student's 95% intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sweeps.report.canvas import INK, band, canvas, dumbbell, legend, line, row_ticks, svg
from sweeps.report.claims import filled
from sweeps.report.intervals import FrameNumbers
from sweeps.report.text_tables import combinations, names, number_at


def drawn(numbers: FrameNumbers) -> dict[str, str]:
    """Every figure of the layout as SVG by its id; "" when nothing of it was run."""
    return {said["id"]: _figure(said, numbers) for said in numbers.layout.figures}


def _figure(said: Mapping[str, Any], numbers: FrameNumbers) -> str:
    panels = said["panels"]
    rows = [_rows(panel, numbers) for panel in panels]
    # Panels that share an axis share its labels as well.
    alike = all(each == rows[0] for each in rows)
    shared = "row" if said.get("shared", True) and alike else "none"
    figure, axes = canvas(1, len(panels), *said["size"], sharey=shared)
    some = False
    for axis, panel, labels in zip(axes[0], panels, rows, strict=True):
        _scales(axis, said.get("log", ""), panel)
        for kind, draw in KINDS.items():
            items = list(described(panel.get(kind, ()), numbers))
            some |= any([draw(axis, item, place, numbers) for place, item in enumerate(items)])
        if labels:
            row_ticks(axis, labels)
        for level in panel.get("levels", ()):
            _level(axis, level, numbers)
    if not some:
        return ""
    axes[0, 0].set_ylabel(said.get("y", ""))
    figure.suptitle(f"Claim: {said['claim']}", fontsize=11, fontweight="bold")
    legend(figure, axes)
    return svg(figure, said["id"])


def _rows(panel: Mapping[str, Any], numbers: FrameNumbers) -> list[str]:
    """The labels of a panel's dumbbells, from the top."""
    return [item["label"] for item in described(panel.get("dumbbells", ()), numbers)]


def _scales(axis: Any, log: str, panel: Mapping[str, Any]) -> None:
    if "y" in log:
        axis.set_yscale("log")
    if "x" in log:
        axis.set_xscale("log", base=panel.get("base", 10))
    if "base" in panel:
        axis.xaxis.set_major_formatter("{x:.0f}")
    elif "x" not in log and panel.get("whole", True):
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_title(panel.get("title", ""))
    axis.set_xlabel(panel["x"])


def described(said: Any, numbers: FrameNumbers) -> Iterator[dict[str, Any]]:
    """What is drawn, once for every combination of `each`; with its colour and its label."""
    for item in said:
        each = item.get("each") or {}
        for values in combinations(each, numbers.frame):
            called = names(each, values, numbers.layout)
            found = {key: _filled(value, values) for key, value in item.items() if key != "each"}
            of = found.get("of", "")
            found["hue"] = numbers.layout.colours.get(of, INK)
            found["label"] = item["label"].format(**called) if "label" in item else called.get(
                next((key for key, value in values.items() if value == of), ""), of
            )  # fmt: skip
            yield found


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [filled(each, values) for each in value]
    return filled(value, values)


def _line(axis: Any, item: Mapping[str, Any], place: int, numbers: FrameNumbers) -> bool:
    label = item["label"]
    if "slope" in item and (slope := number_at(item["slope"], numbers)):
        label += f": slope −{slope.value:.2f}"
    style = {"marker": "o"} | item.get("style", {})
    if isinstance(item["y"], list):
        return _numbers(axis, item, label, style, numbers)
    curve = numbers.frame.curve(item["y"])
    if curve is None:
        return False
    x = item.get("x")
    at = np.arange(1, curve.shape[1] + 1) if x is None else numbers.frame.curve(x)[0]
    line(axis, at, curve, item["hue"], label, **style)
    return True


def _numbers(
    axis: Any, item: Mapping[str, Any], label: str, style: Mapping, numbers: FrameNumbers
) -> bool:
    """Numbers of several cells as one line, with a pale bar each for their intervals."""
    pairs = zip(item["x"], item["y"], strict=True)
    found = [(_place(x, numbers), number_at(y, numbers)) for x, y in pairs]
    found = [(x, margin) for x, margin in found if x is not None and margin]
    found.sort(key=lambda one: one[0])
    if not found:
        return False
    values = [margin.value for _, margin in found]
    axis.plot([x for x, _ in found], values, color=item["hue"], lw=1.4, label=label, **style)
    for x, margin in found:
        if margin.low is not None:
            ends = [max(margin.low, margin.value / 10), margin.high]
            axis.plot([x, x], ends, color=item["hue"], lw=4, alpha=0.25)
    return True


def _place(x: float | str, numbers: FrameNumbers) -> float | None:
    """Where a number stands: as it is said, or at an address; None where that was not run."""
    if not isinstance(x, str):
        return x
    margin = number_at(x, numbers)
    return margin.value if margin else None


def _dumbbell(axis: Any, item: Mapping[str, Any], place: int, numbers: FrameNumbers) -> bool:
    ends = [numbers.estimate([(1.0, address)]) for address in item["ends"]]
    dumbbell(axis, place, item["hue"], ends)
    return any(ends)


def _points(axis: Any, item: Mapping[str, Any], place: int, numbers: FrameNumbers) -> bool:
    curve = numbers.frame.curve(item["y"])
    if curve is None:
        return False
    count = curve.shape[1]
    at = np.arange(count) + (place - 2) * 0.13
    axis.vlines(at, *band(curve), color=item["hue"], lw=3, alpha=0.3)
    axis.plot(at, curve.mean(0), "o", ms=3.5, color=item["hue"], label=item["label"])
    if "even" in item:
        axis.axhline(1 / count, color=INK, ls=":", lw=1.2, label=item["even"])
    axis.set_xticks(range(count), turns(count), rotation=90)
    axis.set_ylim(bottom=0)
    return True


def _level(axis: Any, said: Mapping[str, Any], numbers: FrameNumbers) -> None:
    across = "y" in said
    at = said["y" if across else "x"]
    if isinstance(at, str):
        margin = numbers.estimate([(1.0, at)])
        if margin is None:
            return
        at = margin.value
    draw = axis.axhline if across else axis.axvline
    draw(at, color=INK, ls=":", lw=1.2, label=said["label"])


def turns(count: int) -> list[str]:
    """Names of the sequences of turns in the order of their numbers (the first turn is bit 0)."""
    length = count.bit_length() - 1
    return ["".join("L" if n >> i & 1 else "R" for i in range(length)) for n in range(count)]


KINDS = {"lines": _line, "dumbbells": _dumbbell, "points": _points}
