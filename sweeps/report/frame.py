"""All that the runs of a sweep have measured, by the labels of their cells: one frame of results.

A `Place` is one run of one cell, over its seeds. Its canonical address is all its labels and the
run, `few_steps=2,init=causal_cd/stage3`; claims, figures and tables may leave out the labels'
names, in any order: `causal_cd-2/stage3`, `switching/causal_cd-1/before`. After a further slash
comes the quantity:

    world.total          a metric of scores.jsonl; the id of a column or curve stands for its metric
    law.flow_map:loss    one of its extra numbers
    law.energy.x@3       a member of a curve by its index (@-1: the last), or the mean of the first
                         or last quarter of it (@early, @late)
    cost.seconds         what Stage 2 behind the run cost (cost.py)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs.recipe import Run
from sweeps.plan.graph import Sweep
from sweeps.report import cost
from sweeps.report.layout import Layout, label_text
from sweeps.report.results import ScoreRun, read_score_run


@dataclass(frozen=True)
class Place:
    """One run of a cell: the cell's labels without the seed, the run's name, and by seed what was
    planned and what it measured (None while it is not done).
    """

    labels: Mapping[str, Any]
    name: str
    planned: dict[int, Run] = field(default_factory=dict)
    scored: dict[int, ScoreRun | None] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Its canonical address, without a metric."""
        labels = ",".join(f"{name}={label_text(value)}" for name, value in self.labels.items())
        return f"{labels}/{self.name}"

    def tags(self, run: str) -> dict[str, Any]:
        """Its labels, with the run's name among them where a table is not of one `run` alone."""
        return dict(self.labels) if run else {**self.labels, "run": self.name}

    @property
    def done(self) -> list[ScoreRun]:
        """The finished runs of all seeds; one that seeds share counts once."""
        return list({run.folder: run for run in self.scored.values() if run}.values())

    @cached_property
    def trained(self) -> bool:
        """Whether another seed means another training."""
        runs = {run.name: run for run in self.planned.values()}
        behind = next(iter(runs.values())).closure().values()
        alone = len(self.planned) > 1 and len(runs) == 1
        return not alone and any(need.verb == "fit" for need in behind)


@dataclass(frozen=True)
class Value:
    """A number of one run with its own interval, if it has one; exact when its ends are equal."""

    run: ScoreRun | None
    value: float
    low: float | None = None
    high: float | None = None
    clips: np.ndarray | None = None  # [n], their mean is the number; NaN: does not apply

    @property
    def exact(self) -> bool:
        """Whether nothing is uncertain about it."""
        return self.low == self.high == self.value


class Frame:
    """The runs behind a sweep's cells, as far as they are done.

    Args:
        sweep: planned.
        runs_dir: where its runs live.
        layout: names columns, which addresses may use.
    """

    def __init__(self, sweep: Sweep, runs_dir: Path, layout: Layout) -> None:
        self.sweep, self.runs_dir, self.layout = sweep, runs_dir, layout
        self.seeds = sweep.seeds
        self.places: dict[str, Place] = {}
        read: dict[str, ScoreRun | None] = {}
        for cell in sweep.cells:
            labels = {name: value for name, value in cell.labels.items() if name != "seed"}
            for name, run in cell.runs.items():
                if run.name not in read:
                    samples = cost.samples_of(run)
                    folder = runs_dir / samples.name if samples else None
                    read[run.name] = read_score_run(runs_dir / run.name, folder)
                place = Place(labels, name)
                place = self.places.setdefault(place.address, place)
                place.planned[cell.labels["seed"]] = run
                place.scored[cell.labels["seed"]] = read[run.name]

    @property
    def counts(self) -> tuple[int, int]:
        """How many score runs are done, and how many there are; one for each seed."""
        runs = [run for place in self.places.values() for run in place.scored.values()]
        return sum(run is not None for run in runs), len(runs)

    @property
    def labels(self) -> list[str]:
        """The names of all labels, in the order of the axes."""
        return list(dict.fromkeys(name for place in self.places.values() for name in place.labels))

    def label_values(self, label: str) -> list[Any]:
        """The values of a label: as `names` has them, then in the order of the cells."""
        found = {label_text(p.labels[label]): p.labels[label] for p in self.places.values()
                 if label in p.labels}  # fmt: skip
        said = self.layout.names.get(label, {})
        first = [] if isinstance(said, str) else [name for name in said if name in found]
        return [found[text] for text in dict.fromkeys([*first, *found])]

    @cached_property
    def _by_values(self) -> dict[tuple[str, ...], list[Place]]:
        found: dict[tuple[str, ...], list[Place]] = {}
        for place in self.places.values():
            values = "-".join(map(label_text, place.labels.values()))
            found.setdefault(_words(f"{values}/{place.name}"), []).append(place)
        return found

    def place(self, address: str) -> Place | None:
        """The place of an address without a metric; None when the sweep has no such cell or run.

        Raises:
            ValueError: several cells have these values.
        """
        if address in self.places:
            return self.places[address]
        found = self._by_values.get(_words(address), [])
        if len(found) > 1:
            known = " or ".join(place.address for place in found)
            raise ValueError(f"{address!r} is not one cell; write {known}")
        return found[0] if found else None

    def values(self, address: str) -> dict[int, Value]:
        """The number of each seed that has it."""
        where, _, asked = address.rpartition("/")
        place = self.place(where)
        found = {s: self._value(place, s, asked) for s in place.planned} if place else {}
        return {seed: value for seed, value in found.items() if value is not None}

    def _value(self, place: Place, seed: int, asked: str) -> Value | None:
        if run := self.layout.run_of(asked):
            place = self.places.get(Place(place.labels, run).address)
            if place is None or seed not in place.planned:
                return None
        metric = self.layout.metric(asked)
        if metric.startswith(cost.PREFIX):
            spent = self.cost_of(place, seed)
            number = (spent or {}).get(metric.removeprefix(cost.PREFIX))
            return None if number is None else Value(None, number, number, number)
        run = place.scored[seed]
        found = self._measured(run, asked) if run else None
        if found and found.low is None and not place.trained:
            return Value(run, found.value, found.value, found.value)
        return found

    def cost_of(self, place: Place, seed: int) -> dict[str, float | None] | None:
        """What the Stage 2 behind a place's run cost; None while it is not done."""
        cell = [other for other in self.places.values() if other.labels == place.labels]
        beside = [other.planned[seed] for other in cell if seed in other.planned]
        return cost.of_run(place.planned[seed], self.runs_dir, beside)

    def _measured(self, run: ScoreRun, asked: str) -> Value | None:
        name, _, part = asked.partition("@")
        if part:
            return _of_curve(run, self.layout.metric(name), part)
        name, _, extra = asked.partition(":")
        score = run.scores.get(self.layout.metric(name))
        if score is None:
            return None
        if extra:
            return Value(run, score.extra[extra]) if extra in score.extra else None
        clips = _same_mean(run.per_clip.get(score.metric), score.value)
        return Value(run, score.value, score.low, score.high, clips)

    def curve(self, address: str) -> np.ndarray | None:
        """A curve of every seed that has it, float [seeds, points]; one that seeds share is read
        once. None without any.
        """
        where, _, name = address.rpartition("/")
        place, metric = self.place(where), self.layout.metric(name)
        found = [r.curves[metric] for r in (place.done if place else ()) if metric in r.curves]
        return np.array(found, float) if found else None

    def records(self) -> Iterator[dict[str, Any]]:
        """Every score of every run as a flat record: labels, seed, run, metric, value, ends, n."""
        for place in self.places.values():
            for seed, run in place.scored.items():
                for score in run.scores.values() if run else ():
                    yield {
                        **place.labels, "seed": seed, "run": place.name, "folder": run.folder.name,
                        "metric": score.metric, "value": score.value, "low": score.low,
                        "high": score.high, "n": score.n,
                    }  # fmt: skip


def _words(address: str) -> tuple[str, ...]:
    return tuple(sorted(re.split("[-/]", address)))


def _of_curve(run: ScoreRun, metric: str, part: str) -> Value | None:
    curve = run.curves.get(metric)
    if curve is None:
        return None
    if part not in ("early", "late"):
        return Value(run, curve[int(part)])
    value = float(np.mean(curve[_quarter(len(curve), part)]))
    clips = run.per_clip.get(metric)
    if clips is not None:
        clips = clips[:, _quarter(clips.shape[1], part)].mean(1)
    return Value(run, value, clips=_same_mean(clips, value))


def _quarter(frames: int, part: str) -> slice:
    length = max(1, frames // 4)
    return slice(length) if part == "early" else slice(frames - length, frames)


def _same_mean(clips: np.ndarray | None, value: float) -> np.ndarray | None:
    """Values per clip when their mean is the number itself, float64 [n].

    A composite is not the mean of its clips; then they say nothing about its interval.
    """
    if clips is None:
        return None
    applies = np.isfinite(clips)
    if not applies.any() or abs(clips[applies].mean() - value) > 1e-3 * max(1.0, abs(value)):
        return None
    return clips.astype(np.float64)
