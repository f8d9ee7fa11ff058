"""The JSON of the bench: whole after every row, and continued by the next call."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.atomic import write_text
from experiments.bench import predict

log = logging.getLogger(__name__)
SAME = ("scale", "settings", "protocol", "versions", "revision", "device.name")
"""What must not differ between rows of one file, by dotted path."""


class Report:
    """Rows of one device at one scale.

    A task's rows are dicts with its name under ``task``. One that was not measured has instead
    ``error`` (it failed) or ``not_run`` (it did not get its turn), and why.

    Args:
        file: its path.
        about: scale, device, protocol and peak of the measurement.
        names: of the wanted tasks, in their order.
        again: measure anew what the file has already.

    Raises:
        ValueError: the file is of another device, scale, code or protocol, or not of a bench.
    """

    def __init__(
        self, file: Path, about: Mapping[str, Any], names: Sequence[str], again: bool = False
    ) -> None:
        self.file, self.about = file, dict(about)
        self._found: dict[str, list[dict[str, Any]]] = {}
        if file.exists() and not again:
            self._continue(names)
        for name in names:
            if again or not self.has(name):
                self._found[name] = [_without(name, "not_run", "its turn has not come")]
        self._write()

    def has(self, name: str) -> bool:
        """Whether this task was measured without an error."""
        rows = self._found.get(name)
        return bool(rows) and not any("error" in row or "not_run" in row for row in rows)

    def add(self, name: str, rows: Sequence[Mapping[str, Any]], error: str = "") -> None:
        """A task's rows, those that were measured before an error included."""
        found = [{"task": name, **row} for row in rows]
        if error:
            found.append(_without(name, "error", error))
        self._found[name] = found
        self._write()
        for row in found:
            log.info("%s", line(row))

    def skip(self, name: str, why: str) -> None:
        """A task that does not get its turn."""
        self._found[name] = [_without(name, "not_run", why)]
        self._write()

    def rows(self, lacking: str = "") -> list[dict[str, Any]]:
        """All rows, or those with the key ``error`` or ``not_run``."""
        every = [row for rows in self._found.values() for row in rows]
        return [row for row in every if not lacking or lacking in row]

    def _continue(self, names: Sequence[str]) -> None:
        """Take over what was measured, and the peak that it was measured against."""
        old = require_same(self.file, self.about)
        added = {key: value for key, value in old.items() if key not in ("rows", "stage2")}
        self.about = added | self.about | {"peak": old["peak"]}
        for row in old["rows"]:
            self._found.setdefault(row["task"], []).append(row)
        if kept := sum(self.has(name) for name in names):
            log.info("%s has %d of %d rows already", self.file, kept, len(names))

    def _write(self) -> None:
        rows = self.rows()
        measured = [row for row in rows if "error" not in row and "not_run" not in row]
        stage2 = predict.stage2(measured, self.about["clip_shape"])
        whole = self.about | {"rows": rows, "stage2": stage2}
        write_text(self.file, json.dumps(whole, indent=1, allow_nan=False) + "\n")


def require_same(file: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds, whose rows must be of ``about``, as far as that is known already.

    Raises:
        ValueError: the file is of another device, scale, code or protocol, or not of a bench.
    """
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
        _ = [row["task"] for row in old["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: no file that this bench wrote ({error}); give --out another name,"
            " or replace it with --again"
        ) from None
    for key in SAME:
        was, now = _at(old, key), _at(json.loads(json.dumps(about)), key)
        if was != now and key.partition(".")[0] in about:
            raise ValueError(
                f"{file}: its rows are of another {key} ({was}; now {now}); give --out"
                " another name, or measure all of it anew with --again"
            )
    return old


def line(row: Mapping[str, Any]) -> str:
    """A row in a line."""
    for key, say in (("error", "failed: "), ("not_run", "not run: ")):
        if key in row:
            return f"{row['name']:<48} {say}{row[key].splitlines()[0]}"
    if "median_s" not in row:
        found = {key: value for key, value in row.items() if key not in ("name", "task")}
        return f"{row['name']:<48} {json.dumps(found)}"
    seconds = row.get("expected_s", row["median_s"])
    share, mfu = 100 * row["share_of_roofline"], 100 * row["mfu"]
    return (
        f"{row['name']:<48} {seconds:10.4f} s  {share:5.1f}% of the roofline"
        f"  MFU {mfu:5.1f}%  {row['peak_memory_bytes'] / 2**30:7.2f} GiB"
    )


def prediction(rows: Sequence[Mapping[str, Any]], clip_shape: Sequence[int], device: str) -> str:
    """The costs of Stage 2 as a small table."""
    measured = [row for row in rows if "error" not in row and "not_run" not in row]
    found = predict.stage2(measured, clip_shape)["initialisations"]
    lines = [f"Stage 2 at the paper's counts: hours of one {device} (paper: A800), GiB (paper)"]
    for init, one in found.items():
        hours = one["device_hours"]
        shown = "not measured" if hours is None else f"{hours:,.1f}"
        lines.append(
            f"  {init:<18} {shown:>14} ({_printed(one['paper_a800_hours'])})"
            f"  {one['storage_gib']:8,.0f} ({_printed(one['paper_storage_gib'])})"
        )
    return "\n".join(lines)


def _printed(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _without(name: str, key: str, why: str) -> dict[str, str]:
    return {"task": name, "name": name, key: why}


def _at(tree: Mapping[str, Any], path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key, {})
    return tree
