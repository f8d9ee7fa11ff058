"""How a sweep's results are shown: the settings of its `table`, all with defaults.

A sweep names a folder of `sweeps/tables/` (`table: ablation`), or holds the keys itself. A folder
has `table.yaml` with these keys, all optional, and may have `claims.yaml` and `preconditions.yaml`
(see claims.py), and `paper.yaml`::

    intro: a sentence under the page's title
    run: stage3               # which of a cell's runs the table shows; left out: all of them
    blocks: few_steps         # the label whose values are not compared with each other
    ranking: false            # no table of the cells: `tables` say all
    references: [ceiling]     # rows with such a label stand outside the ranking, below all blocks
    controls: [other_teacher] # the same, but each stands in its block
    real: ceiling             # the reference whose curves are drawn beside those of the rows
    names: {init: {causal_cd: causal CD}, few_steps: "{}-step"}   # of labels' values; rows and
                              # blocks come in the order of the names
    heads: {few_steps: steps}                                     # of labels
    runs: {after: after Stage 3}                                  # of runs, in claims
    colours: {causal_cd: "#009e73"}   # the other rows take colours that are not among these
    columns: {time: {metric: cost.seconds, heading: ..., ...}}    # beside those of the judge; with
                              # `run`, of that run of the cell and not of the row's own
    compare: {runs: [stage2, stage3], columns: [total], title: ..., caption: ...}
    notes: [...]
    figures, tables, frontiers: see drawn.py, text_tables.py and frontiers.py

Which metrics a scale's judge gives columns and curves is in `sweeps/tables/judges.yaml`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from experiments.runs.config import nearest
from experiments.runs.yaml_reader import read_table
from sweeps.plan.graph import FOLDER, Sweep

TABLES = FOLDER / "tables"
FILES = ("claims", "preconditions", "paper")
SPARE_COLOURS = (
    "#009e73", "#d55e00", "#3b8fd6", "#c763a5", "#b5890d", "#7a6fd0", "#5f9ea0",
    "#8fae1b", "#e8557f", "#22b8cf", "#96572f",
)  # fmt: skip
GOLDEN = 0.618034  # of a turn of the hue: each new hue falls into one of the widest gaps


@dataclass(frozen=True)
class Column:
    """A column or curve: name, unit, direction; `metric` is "" for printed numbers. `run` is the
    run of the cell that measured it, where that is not the row's own.
    """

    id: str
    heading: str
    unit: str
    better: str
    digits: int = 3
    ranked: bool = False
    metric: str = ""
    run: str = ""

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return -1 if self.better == "lower" else 1

    @property
    def title(self) -> str:
        """Heading with the unit and an arrow towards better."""
        unit = f" [{self.unit}]" if self.unit and self.unit != "B" else ""
        return f"{self.heading}{unit} {'↓' if self.better == 'lower' else '↑'}"

    def text(self, value: float) -> str:
        """A value as printed."""
        if self.unit == "B":
            return human_bytes(value)
        text = f"{value:.{self.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text


@dataclass(frozen=True)
class Layout:
    """What the module's docstring describes, read; `columns` and `curves` by their ids."""

    intro: str = ""
    run: str = ""
    blocks: str = ""
    ranking: bool = True
    references: Sequence[str] = ()
    controls: Sequence[str] = ()
    real: str = ""
    names: Mapping[str, Any] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Column] = field(default_factory=dict)
    curves: Mapping[str, Column] = field(default_factory=dict)
    compare: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    figures: Sequence[Mapping[str, Any]] = ()
    tables: Sequence[Mapping[str, Any]] = ()
    frontiers: Sequence[Mapping[str, Any]] = ()
    claims: Mapping[str, Any] = field(default_factory=dict)
    preconditions: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)

    def name(self, label: str, value: Any) -> str:
        """Display name of a label's value; by default with the name of its label."""
        said, text = self.names.get(label), label_text(value)
        if said is None:
            return f"{label} {text}"
        return said.format(text) if isinstance(said, str) else said.get(text, text)

    def rank_of_reference(self, labels: Mapping[str, Any]) -> int | None:
        """Where among the references a cell stands; None when it is to be ranked."""
        found = [self.references.index(v) for v in labels.values() if v in self.references]
        return min(found, default=None)

    def is_control(self, labels: Mapping[str, Any]) -> bool:
        """Whether a cell is shown in its block and not ranked."""
        return any(value in self.controls for value in labels.values())

    def order_of_block(self, at: Any) -> tuple[bool, int, float, str]:
        """Sorts blocks by their values: as `names` has them, then numbers by size, then texts;
        cells without the label come last.
        """
        said, text = self.names.get(self.blocks, {}), label_text(at)
        named = [] if isinstance(said, str) else list(said)
        size = float(at) if isinstance(at, int | float) else float("inf")
        return at is None, named.index(text) if text in named else len(named), size, text

    def head(self, label: str) -> str:
        """Column heading of a label."""
        return self.heads.get(label, label)

    def run_of(self, id: str) -> str:
        """The run of a cell that has the numbers of a column; "" is the one that is asked."""
        return self.columns[id].run if id in self.columns else ""

    def metric(self, id: str) -> str:
        """The metric of a column or curve of that id; any other text is a metric already."""
        found = self.columns.get(id) or self.curves.get(id)
        return found.metric if found else id


def load_layout(sweep: Sweep) -> Layout:
    """How a sweep's results are shown.

    Raises:
        FileNotFoundError: it names a table that is not there.
        ValueError: an unknown key (the file and the nearest key are named).
    """
    if isinstance(sweep.table, str):
        folder = TABLES / sweep.table
        file = folder / "table.yaml"
        if not file.is_file():
            known = sorted(path.parent.name for path in TABLES.glob("*/table.yaml"))
            hint = f"{nearest(sweep.table, known)} (there are: {', '.join(known)})"
            raise FileNotFoundError(f"sweep {sweep.name}: there is no {file}{hint}")
        beside = {name: folder / f"{name}.yaml" for name in FILES}
        said = read_table(file) | {
            n: read_table(path) for n, path in beside.items() if path.exists()
        }
    else:
        file, said = f"sweep {sweep.name}, table", sweep.table
    known = list(Layout.__dataclass_fields__)
    for key in said:
        if key not in known:
            raise ValueError(f"{file}: unknown key {key!r}{nearest(key, known)}")
    wanted = said.get("preconditions", {}).get("scales")
    if wanted is not None and not {sweep.scale, *sweep.bases} & set(wanted):
        del said["preconditions"]
    return _with_judge(said, judge_of(sweep))


def _with_judge(said: Mapping[str, Any], judge: Mapping[str, Any]) -> Layout:
    columns, curves = (
        {id: Column(id, **entry) for id, entry in (judge.get(k, {}) | said.get(k, {})).items()}
        for k in ("columns", "curves")
    )
    notes = [*judge.get("notes", []), *said.get("notes", [])]
    return Layout(**{**said, "columns": columns, "curves": curves, "notes": notes})


def judge_of(sweep: Sweep) -> Mapping[str, Any]:
    """The first entry of judges.yaml whose need a run of a cell has; {} when there is none."""
    needs = {
        role for cell in sweep.cells for run in cell.runs.values() for role in run.recipe["needs"]
    }
    judges = read_table(TABLES / "judges.yaml").values()
    return next((judge for judge in judges if judge["need"] in needs), {})


def spare_colours(used: Iterable[str]) -> Iterator[str]:
    """Colours `#rrggbb` for rows that have none: all different, none of `used`, without end."""
    taken = {colour.lower() for colour in used}
    hues = (colorsys.hls_to_rgb(number * GOLDEN % 1, 0.5, 0.5) for number in count())
    made = ("#" + "".join(f"{round(255 * part):02x}" for part in hue) for hue in hues)
    return (colour for colour in chain(SPARE_COLOURS, made) if colour not in taken)


def label_text(value: Any) -> str:
    """A label's value in an address and in files."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def human_bytes(count: float) -> str:
    """Bytes in binary units, for example 18.4 MiB; zero is "0 B"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count == 0 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
