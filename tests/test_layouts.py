"""What tables, figures and claims ask for is measured by a cell of their sweeps."""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from experiments.runs.recipe import Library
from experiments.runs.yaml_reader import read_table
from sweeps.plan.graph import FOLDER, load_sweep
from sweeps.report.claims import Side, comparisons
from sweeps.report.drawn import KINDS, described
from sweeps.report.frame import Frame
from sweeps.report.intervals import FrameNumbers
from sweeps.report.layout import load_layout
from sweeps.report.text_tables import ORDER, combinations

SWEEPS = sorted(file.stem for file in FOLDER.glob("*.yaml"))
SCALES = sorted(file.stem for file in Library().scales.glob("*.yaml"))


def frame_of(name: str, runs: Path) -> FrameNumbers:
    """Planned and not run, at the first scale that the sweep is for."""
    for scale in SCALES:
        try:
            sweep = load_sweep(name, scale, [0], runs=runs)
        except ValueError:
            continue
        if sweep.cells:
            return FrameNumbers(Frame(sweep, runs, load_layout(sweep)))
    raise AssertionError(f"{name} is for no scale")


@cache
def frames() -> dict[str, list[FrameNumbers]]:
    """The sweeps of each table; one with a table of its own stands alone."""
    found = defaultdict(list)
    for name in SWEEPS:
        said = read_table(FOLDER / f"{name}.yaml").get("table", {})
        found[said if isinstance(said, str) else name].append(frame_of(name, Path("nowhere")))
    return found


def drawn_addresses(numbers: FrameNumbers) -> Iterator[str]:
    for figure in numbers.layout.figures:
        for panel in figure["panels"]:
            for kind in KINDS:
                for item in described(panel.get(kind, ()), numbers):
                    for key in ("x", "y", "ends"):
                        found = item.get(key, [])
                        yield from found if isinstance(found, list) else [found]


def rows_of(numbers: FrameNumbers) -> Iterator[list[str]]:
    for table in numbers.layout.tables:
        for row in table["rows"]:
            for values in combinations(row.get("each") or {}, numbers.frame):
                yield [cell.format(**values) for cell in row["cells"][1:]]


def claimed_addresses(numbers: FrameNumbers) -> Iterator[str]:
    for said in (numbers.layout.claims, numbers.layout.preconditions):
        for group in said.get("groups", ()):
            for claim in group["claims"]:
                for comparison in comparisons(claim):
                    for side in comparison.values():
                        yield from (address for _, address in Side.read(side).terms)


def places(address: str) -> list[str]:
    """Where the numbers of an address, or of an `order(...)`, are."""
    ordered = ORDER.fullmatch(address)
    return [one.rpartition("/")[0] for one in (ordered.groups()[:2] if ordered else [address])]


@pytest.mark.parametrize("addresses", [drawn_addresses, claimed_addresses])
def test_what_a_figure_or_a_claim_asks_is_measured_by_a_sweep_of_its_table(addresses):
    missing = [
        (table, place)
        for table, sweeps in frames().items()
        for address in addresses(sweeps[0])
        if isinstance(address, str)
        for place in places(address)
        if not any(numbers.frame.place(place) for numbers in sweeps)
    ]
    assert missing == []


def test_no_row_of_a_table_is_empty():
    """A cell of one may be, where a combination of labels is not run."""
    for table, sweeps in frames().items():
        for row in rows_of(sweeps[0]):
            asked = [place for address in row for place in places(address)]
            assert any(sweeps[0].frame.place(place) for place in asked), (table, row)
