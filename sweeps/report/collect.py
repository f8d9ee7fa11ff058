"""From a planned sweep to its results: the one place that knows how runs hang together.

A cell of the sweep's graph names two score runs, `stage3` and `stage2`. Behind `stage3` the needs
lead to the clips (a sample run), to the Stage-3 training and to the Stage-2 training it started
from, whose pairs, if it needs any, are Stage-2 cost as well. A cell without `few_steps` is a
reference row (a teacher, a ceiling or a floor); its `init` is its name. Seeds may share its run.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Run
from sweeps.plan import graph
from sweeps.report.layout import load_yaml
from sweeps.report.results import Cell, Cost, Key, Results, ScoreRun, read_score_run


def collect(sweep: graph.Sweep, runs_dir: Path) -> Results:
    """Everything that the sweep's runs in `runs_dir` have measured so far.

    Raises:
        ValueError: a cell's init has no row in columns.yaml, or a result file cannot be read.
    """
    layout = load_yaml("columns.yaml")
    cells: dict[Key, Cell] = {}
    references: dict[str, dict[str, ScoreRun]] = {}
    for planned in sweep.cells:
        scored = {name: _scored(run, runs_dir) for name, run in planned.runs.items()}
        init = str(planned.labels.get("init", planned.labels))
        if "few_steps" not in planned.labels:
            first = next(((planned.runs[n].name, run) for n, run in scored.items() if run), None)
            references.setdefault(init, {}).update([first] if first else [])
            continue
        if init not in layout["rows"]:
            raise ValueError(f"columns.yaml: rows has no name for init {init!r} of {sweep.name}")
        key = (init, int(planned.labels["few_steps"]), int(planned.labels["seed"]))
        state = _state(planned.runs.values(), runs_dir)
        cost = _cost(planned.runs.get("stage3"), init in layout["no_stage2"], runs_dir)
        cells[key] = Cell(*key, state, scored.get("stage3"), scored.get("stage2"), cost)
    order = [name for name in layout["references"] if name in references]
    shown = {init: list(references[init].values()) for init in dict.fromkeys([*order, *references])}
    return Results(cells, shown, _real(sweep, runs_dir), provenance(sweep, cells, runs_dir))


def _of_verb(run: Run | None, verb: str) -> list[Run]:
    return [need for need in run.needs.values() if need.verb == verb] if run else []


def _student(run: Run | None) -> Run | None:
    """The training that a sample run or a stage takes its student from."""
    if run is None:
        return None
    trained = {role: need for role, need in run.needs.items() if need.verb == "fit"}
    return trained.get("student") or next(iter(trained.values()), None)


def _scored(run: Run, runs_dir: Path) -> ScoreRun | None:
    samples = next(iter(_of_verb(run, "sample")), None)
    return read_score_run(runs_dir / run.name, runs_dir / samples.name if samples else None)


def _state(runs: Iterable[Run], runs_dir: Path) -> str:
    states = [RunFolder(runs_dir / run.name).state() for run in runs]
    return next((state for state in states if state != "done"), "done")


def _cost(score: Run | None, starts_from_stage1: bool, runs_dir: Path) -> Cost | None:
    """What Stage 2 cost; None while it, or pairs it needs, are not finished."""
    sample = next(iter(_of_verb(score, "sample")), None)
    stage2 = _student(_student(sample))
    if stage2 is None or not RunFolder(runs_dir / stage2.name).done:
        return None
    if starts_from_stage1:
        return Cost(seconds=None, storage=0, steps=None)
    pairs = [runs_dir / need.name for need in _of_verb(stage2, "pairs")]
    seconds = [device_seconds(folder) for folder in (runs_dir / stage2.name, *pairs)]
    if None in seconds:
        return None
    return Cost(
        seconds=sum(seconds),
        storage=sum(stored_bytes(folder) for folder in pairs),
        steps=stage2.recipe["fit"].get("steps"),
        pairs_seconds=sum(seconds[1:]),
    )


def stored_bytes(run: Path) -> int:
    """Bytes on disk of the tars that a run wrote."""
    return sum(path.stat().st_size for path in run.rglob("*.tar"))


def device_seconds(run: Path) -> float | None:
    """Device-seconds of a finished run; None when it is not done or recorded none."""
    folder = RunFolder(run)
    seconds = folder.read_record().get("device_s") if folder.done else None
    return None if seconds is None else float(seconds)


def _real(sweep: graph.Sweep, runs_dir: Path) -> Sequence[Path]:
    """Where held-out real clips may lie: what the first cell is scored against or prompted from."""
    for planned in sweep.cells:
        score = planned.runs.get("stage3")
        behind = [score, *_of_verb(score, "sample")]
        curated = [need for run in behind for need in _of_verb(run, "curate")]
        if curated:
            return list(dict.fromkeys(runs_dir / run.name for run in curated))
    return []


def provenance(sweep: graph.Sweep, cells: Mapping[Key, Cell], runs_dir: Path) -> dict[str, str]:
    """Where and when the numbers were made: date, machine, code, versions, runs behind them."""
    done = [run for run in sweep.runs if (runs_dir / run / "done.json").exists()]
    records = [RunFolder(runs_dir / run).read_record() for run in done]
    told = {
        "devices": _all(record.get("device") for record in records),
        "code that made the runs": _all(record.get("code") for record in records),
        "versions": _all(
            ", ".join(f"{name} {version}" for name, version in sorted(v.items()))
            for record in records
            if isinstance(v := record.get("versions"), dict)
        ),
    }
    return {
        "table made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z} on {platform.node()}",
        "machine": f"{platform.platform()}, {platform.machine()}, Python "
        f"{platform.python_version()}",
        "code of the table": revision(),
        "sweep": f"{sweep.name} at scale {sweep.scale}, seeds {', '.join(map(str, sweep.seeds))}",
        "runs": f"{len(done)} of {len(sweep.runs)} done, in {runs_dir}",
        "device-seconds of all runs": f"{sum(r.get('device_s') or 0 for r in records):,.0f}",
        "score runs": ", ".join(
            cell.stage3.folder.name for cell in cells.values() if cell.stage3
        ),
    } | {name: value for name, value in told.items() if value}  # fmt: skip


def _all(values: Iterable[object]) -> str:
    return "; ".join(sorted({str(value) for value in values if value}))


def revision() -> str:
    """This checkout's commit, with a mark when files differ from it; "" outside of git."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(
            command, cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
