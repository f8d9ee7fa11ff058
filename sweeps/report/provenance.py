"""Provenance of a report: when, where and by which runs its numbers were made."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from experiments.runs.folder import RunFolder
from experiments.runs.provenance import revision
from sweeps.plan.graph import Sweep


def provenance(sweep: Sweep, runs_dir: Path) -> dict[str, str]:
    """Date, machine, code, versions, and the runs behind the numbers."""
    done = [run for run in sweep.runs if (runs_dir / run / "done.json").exists()]
    scores = {run.name for cell in sweep.cells for run in cell.runs.values()}
    scales = ", ".join(dict.fromkeys(run.scale for run in sweep.runs.values()))
    records = [RunFolder(runs_dir / run).read_record() for run in done]
    told = {
        "table made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z} on {platform.node()}",
        "machine": f"{platform.platform()}, {platform.machine()}, Python "
        f"{platform.python_version()}",
        "code of the table": revision(),
        "sweep": f"{sweep.name} at scale {scales}, seeds {', '.join(map(str, sweep.seeds))}",
        "runs": f"{len(done)} of {len(sweep.runs)} done, in {runs_dir}",
        "device-seconds of all runs": f"{sum(r.get('device_s') or 0 for r in records):,.0f}",
        "score runs": f"{len(scores)}, named in records.csv",
        "devices": _all(record.get("device") for record in records),
        "code that made the runs": _all(record.get("code") for record in records),
        "versions": _all(
            ", ".join(f"{name} {version}" for name, version in sorted(v.items()))
            for record in records
            if isinstance(v := record.get("versions"), dict)
        ),
    }
    return {name: value for name, value in told.items() if value}


def _all(values: Iterable[object]) -> str:
    return "; ".join(sorted({str(value) for value in values if value}))
