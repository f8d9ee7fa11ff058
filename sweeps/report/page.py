"""The self-contained HTML page of a sweep: table, claims, frames, figures and provenance.

Everything is inline (styles, SVG figures, PNG strips as data URIs): no script, nothing is fetched,
so the file can be mailed or archived. The markup is in `page.html`, filled by jinja2; an empty
section is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.report import render
from sweeps.report.cost import of_verb
from sweeps.report.frame import Frame
from sweeps.report.frames import Clip, data_uri, read_clips, strip_png
from sweeps.report.intervals import NOT_RUN
from sweeps.report.table import Row, Table

if TYPE_CHECKING:
    from jinja2 import Environment

    from sweeps.report.command import Report

PROMPTS = 3
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StripRow:
    """A row of the strip of frames: its name, and an image (data URI or "") per prompt."""

    label: str
    pictures: Sequence[str]
    absent: str = ""


@dataclass(frozen=True)
class Strips:
    """The strips of one block; all rows show the same prompts."""

    title: str
    captions: Sequence[str]
    rows: Sequence[StripRow]


def page(report: Report) -> str:
    """The page as one HTML text."""
    from sweeps.report.drawn import drawn
    from sweeps.report.figures import automatic

    numbers, layout = report.numbers, report.numbers.layout
    return environment().get_template("page.html").render(
        report=report,
        layout=layout,
        heading=layout.claims.get("heading", ""),
        plural=render.PLURAL,
        counts={m: sum(v.verdict == m for v in report.verdicts) for m in render.MARK},
        mark=render.MARK,
        strips=strips(numbers.frame, report.ours),
        figures=automatic(numbers, report.ours),
        drawn=drawn(numbers),
        one_seed=len(numbers.frame.seeds) == 1,
    )  # fmt: skip


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
    words = (render.margin_text, render.tally, render.badge, render.anchor)
    found.filters |= dict(zip(("margin", "tally", "badge", "anchor"), words, strict=True))
    return found


def strips(frame: Frame, table: Table | None) -> list[Strips]:
    """Frames of every row of the first seed with samples, the same prompts in all, real on top."""
    if table is None:
        return []
    samples = {row.address: _samples(frame, row) for row in table.rows}
    first = next((found for f in samples.values() if f and (found := _clips(f))), {})
    if not first:
        return []
    keys = list(first)
    real = next(filter(None, (_clips(folder, keys) for folder in _real(frame, table))), {})
    found = []
    for block in table.blocks:
        shown = [StripRow("real", _pictures(real, keys))] if real else []
        captions = {key: clip.caption for key, clip in real.items()}
        for row in block.rows:
            folder = samples[row.address]
            clips = _clips(folder, keys) if folder else {}
            captions = {key: clip.caption for key, clip in clips.items()} | captions
            shown.append(StripRow(row.name, _pictures(clips, keys), "" if clips else NOT_RUN))
        found.append(Strips(block.title, [captions.get(key, "") for key in keys], shown))
    return found


def _samples(frame: Frame, row: Row) -> Path | None:
    runs = frame.places[row.address].done
    return next((run.samples for run in runs if run.samples), None)


def _real(frame: Frame, table: Table) -> list[Path]:
    """Candidate runs with held-out real clips: a row's reference or prompts."""
    for row in table.rows:
        score = next(iter(frame.places[row.address].planned.values()))
        curated = [n for run in [score, *of_verb(score, "sample")] for n in of_verb(run, "curate")]
        if curated:
            return list(dict.fromkeys(frame.runs_dir / run.name for run in curated))
    return []


def _clips(folder: Path, keys: Sequence[str] = ()) -> dict[str, Clip]:
    try:
        return read_clips(folder, PROMPTS, keys)
    except (ValueError, OSError) as error:  # a damaged image must not hide the numbers
        log.warning("no frames: %s", error)
        return {}


def _pictures(clips: dict[str, Clip], keys: Sequence[str]) -> list[str]:
    return [data_uri(strip_png(clips[key].video)) if key in clips else "" for key in keys]
