"""The self-contained HTML page of a sweep: table, claims, frames, figures and provenance.

Everything is inline (styles, SVG figures, PNG strips as data URIs): no script, nothing is fetched,
so the file can be mailed or archived. The markup is in `page.html`, filled by jinja2.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.report import figures, render
from sweeps.report.claims import Verdict
from sweeps.report.frames import Clip, data_uri, read_clips, strip_png
from sweeps.report.intervals import OurNumbers
from sweeps.report.layout import NOT_RUN, Table
from sweeps.report.results import Results

if TYPE_CHECKING:
    from jinja2 import Environment

PROMPTS = 3
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StripRow:
    """A row of the strip of frames: whose clips, and a picture (data URI or "") per prompt."""

    label: str
    pictures: Sequence[str]
    absent: str = ""


@dataclass(frozen=True)
class Strips:
    """The strips of one step count; all rows show the same prompts."""

    steps: int
    captions: Sequence[str]
    rows: Sequence[StripRow]


def page(
    title: str, numbers: OurNumbers, ours: Table, paper: Table, verdicts: Sequence[Verdict]
) -> str:
    """The page as one HTML text."""
    inits = list(numbers.layout["rows"])
    template = environment().get_template("page.html")
    return template.render(
        title=title,
        ours=ours,
        paper=paper,
        verdicts=verdicts,
        plural=render.PLURAL,
        counts={v: sum(x.verdict == v for x in verdicts) for v in render.MARK},
        mark=render.MARK,
        strips=strips(numbers.results, numbers.layout["rows"]),
        colours={init: figures.colour(init, inits) for init in inits},
        drift=figures.drift(numbers),
        stages=figures.stages(numbers),
        cost=figures.cost(numbers),
        one_seed=len(numbers.results.seeds) == 1,
        provenance=numbers.results.provenance,
    )


def environment() -> Environment:
    """The templates of this folder and the words that they share."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"margin": render.margin_text, "tally": render.tally, "badge": render.badge}
    return found


def strips(results: Results, rows: dict[str, str]) -> list[Strips]:
    """Frames of every cell of the first seed with samples, the same prompts in all, real on top."""
    keys, real = _prompts(results)
    if not keys:
        return []
    found = []
    for steps in results.steps:
        shown = [StripRow("real", _pictures(real, keys))] if real else []
        captions = {key: clip.caption for key, clip in real.items()}
        for init, label in rows.items():
            folders = [c.stage3.samples for c in results.of(init, steps) if c.stage3]
            clips = _clips(next(iter(folders), None), keys)
            captions = {key: clip.caption for key, clip in clips.items()} | captions
            absent = "" if clips else NOT_RUN
            shown.append(StripRow(label, _pictures(clips, keys), absent))
        found.append(Strips(steps, [captions.get(key, "") for key in keys], shown))
    return found


def _prompts(results: Results) -> tuple[list[str], dict[str, Clip]]:
    """Keys of the prompts to show, from the first cell that has clips, and real clips for them."""
    for cell in results.cells.values():
        folder = cell.stage3.samples if cell.stage3 else None
        if folder and (first := read_clips(folder, PROMPTS)):
            found = (_clips(real, list(first)) for real in results.real)
            return list(first), next(filter(None, found), {})
    return [], {}


def _clips(folder: Path | None, keys: Sequence[str]) -> dict[str, Clip]:
    if folder is None:
        return {}
    try:
        return read_clips(folder, len(keys), set(keys))
    except ValueError as error:  # a broken picture must not hide the numbers
        log.warning("no frames: %s", error)
        return {}


def _pictures(clips: dict[str, Clip], keys: Sequence[str]) -> list[str]:
    return [data_uri(strip_png(clips[key].video)) if key in clips else "" for key in keys]
