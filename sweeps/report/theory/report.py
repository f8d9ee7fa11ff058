"""`python -m sweeps theory`: the report from whatever of the two sweeps has been run so far.

Writes theory.md and one self-contained index.html below runs/tables/theory, and prints the
statements with their answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.atomic import write_text
from sweeps.plan.graph import Sweep, load_sweep
from sweeps.report.claims import Verdict
from sweeps.report.render import MARK, PLURAL, badge, margin_text, tally
from sweeps.report.theory.numbers import PREFIX, TheoryNumbers
from sweeps.report.theory.statements import Group, judge, load_statements
from sweeps.report.theory.tables import TextTable, tables

WORLDS = ("switching", "gaussian")
"""Each a scale, and with the prefix a sweep."""
TITLE = "The theory, measured where the law is known"


def main(seeds: list[int], runs_dir: Path, out: Path | None = None) -> None:
    """Print the report and write it below `out` (default: runs_dir/tables/theory).

    Raises:
        ValueError: a result file cannot be read (it is named).
    """
    sweeps = [load_sweep(f"{PREFIX}{world}", world, seeds) for world in WORLDS]
    folder = out or runs_dir / "tables" / "theory"
    _show(write(sweeps, runs_dir, folder), folder)


def write(sweeps: Sequence[Sweep], runs_dir: Path, folder: Path) -> list[Group]:
    """Write theory.md and index.html into `folder`; returns the answered statements."""
    from sweeps.report.collect import provenance

    numbers = TheoryNumbers(sweeps, runs_dir)
    groups, shown = judge(load_statements(), numbers), tables(numbers)
    told: dict[str, str] = {}
    for sweep in sweeps:
        found = provenance(sweep, {}, runs_dir)
        told |= {k: v for k, v in found.items() if k not in ("runs", "score runs", "sweep")}
        told[sweep.name] = f"{found['sweep']}; {found['runs']}"
    seconds = [provenance(s, {}, runs_dir)["device-seconds of all runs"] for s in sweeps]
    told["device-seconds of all runs"] = " and ".join(seconds)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "theory.md", markdown(groups, shown, numbers, told))
    write_text(folder / "index.html", page(groups, shown, numbers, told))
    return groups


def markdown(
    groups: Sequence[Group],
    shown: Sequence[TextTable],
    numbers: TheoryNumbers,
    told: Mapping[str, str],
) -> str:
    """The report without figures."""
    lines = [f"# {TITLE}", "", summary(groups, numbers), ""]
    for group in groups:
        lines += [f"## {group.title}", "", *_statement_rows(group.verdicts), ""]
    for table in shown:
        lines += [f"## {table.title}", "", f"| {' | '.join(table.head)} |"]
        lines += ["|---|" + "---:|" * (len(table.head) - 1)]
        lines += [_row(row) for row in table.rows]
        lines += ["", table.note, ""]
    lines += ["## Where the numbers come from", ""]
    lines += [f"- {name}: {value}" for name, value in told.items() if value]
    return "\n".join([*lines, ""])


def summary(groups: Sequence[Group], numbers: TheoryNumbers) -> str:
    """How many statements have which answer, and from how much."""
    verdicts = [v.verdict for group in groups for v in group.verdicts]
    counted = [f"{verdicts.count(name)} {PLURAL[name]}" for name in MARK if name in verdicts]
    constructed = sum(group.constructed for group in groups)
    done, planned = numbers.done
    seeds = ", ".join(map(str, numbers.seeds))
    return (
        f"{len(verdicts)} statements: {', '.join(counted)}. {constructed} of them are true by"
        ' construction: they check the code. "Does not hold" needs one comparison of a statement'
        " (of up to 15) with its whole interval on the wrong side, uncorrected for their number."
        f" Score runs: {done} of {planned}; seeds {seeds}. Values: mean over seeds ± half of"
        " Student's 95% interval, which knows the variation between trainings alone, not that of"
        " the clips judged; facts of the law have one value, with Monte Carlo's interval where one"
        " was estimated."
    )


def page(
    groups: Sequence[Group],
    shown: Sequence[TextTable],
    numbers: TheoryNumbers,
    told: Mapping[str, str],
) -> str:
    """The page as one HTML text."""
    from sweeps.report.page import environment
    from sweeps.report.theory.figures import FIGURES

    template = environment().get_template("theory/page.html")
    return template.render(
        title=TITLE,
        summary=summary(groups, numbers),
        groups=groups,
        tables=shown,
        mark=MARK,
        figures={name: draw(numbers) for name, draw in FIGURES.items()},
        provenance=told,
    )


def _statement_rows(verdicts: Sequence[Verdict]) -> list[str]:
    head = ["statement", "in the paper", "ours", "comparisons", "deciding (positive: for it)"]
    rows = [_row([v.sentence, v.where, badge(v), tally(v), margin_text(v)]) for v in verdicts]
    return [_row(head), "|---|---|---|---|---|", *rows]


def _row(cells: Sequence[str]) -> str:
    """A line of a Markdown table; the bars of `Var(x | y)` would end a cell."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _show(groups: Sequence[Group], folder: Path) -> None:
    """Print the answers to the terminal, or as Markdown where there is none."""
    from rich.console import Console

    from sweeps.report.render import rich_claims

    console = Console()
    for group in groups:
        if console.is_terminal:
            console.print(rich_claims(group.verdicts, group.title))
        else:
            lines = [f"## {group.title}", "", *_statement_rows(group.verdicts), ""]
            console.file.write("\n".join(lines) + "\n")
    console.print(f"Report with tables and figures: {folder / 'index.html'}", soft_wrap=True)
