"""The theory report: its planned sweeps, and its output for synthetic and for missing numbers."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_sweep import numbers_of
from test_page import Reader

from sweeps import __main__ as command
from sweeps.plan.graph import load_sweep
from sweeps.report import drawn
from sweeps.report.canvas import canvas
from sweeps.report.claims import FAILS, HOLDS, UNDECIDED, comparisons, judge
from sweeps.report.command import write as write_report
from sweeps.report.intervals import NOT_RUN, number
from sweeps.report.layout import load_layout

SEEDS = [0, 1, 2]
FACTS = "switching/law/facts/law.injectivity.bidirectional"


LAYOUT = load_layout(load_sweep("theory", ""))


@pytest.fixture(scope="module")
def sweep():
    return load_sweep("theory", "", SEEDS)


def addresses(comparison):
    return [side for side in (comparison["greater"], comparison["than"]) if isinstance(side, str)]


ALL = [
    (statement["id"], comparison)
    for group in LAYOUT.claims["groups"]
    for statement in group["claims"]
    for comparison in comparisons(statement)
]


def places(sweep):
    """Run names by `world/cell/run` and seed."""
    found = {}
    for cell in sweep.cells:
        world, *labels = [str(v).lower() for k, v in cell.labels.items() if k != "seed"]
        for name, run in cell.runs.items():
            place = f"{world}/{'-'.join(labels)}/{name}"
            found.setdefault(place, {})[cell.labels["seed"]] = run.name
    return found


def write(runs, name, scores, curves):
    """A finished score run with these values; a tuple is (value, low, high), a dict has extras."""
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for metric, given in scores.items():
        given = given if isinstance(given, tuple) else (given, None, None)
        extra = {m.partition(":")[2]: v for m, v in scores.items() if m.startswith(f"{metric}:")}
        interval = None if given[1] is None else list(given[1:])
        lines.append(
            {"metric": metric, "value": given[0], "n": 9, "ci95": interval, "extra": extra}
        )
    lines = [json.dumps(line) for line in lines if ":" not in line["metric"]]
    (folder / "scores.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "curves.json").write_text(json.dumps(curves))
    (folder / "done.json").write_text("{}")


def made_up(sweep, runs, values, noise=0.01):
    """Score runs of every seed with the values of `values[address]`, a little apart by seed."""
    for place, names in places(sweep).items():
        asked = {a.rpartition("/")[2]: v for a, v in values.items() if a.startswith(f"{place}/")}
        for seed, name in names.items():
            if not asked:
                continue
            shared = len(set(names.values())) == 1
            factor = 1 if shared else 1 + noise * (seed - 1)
            scores, curves = {}, {}
            for metric, value in asked.items():
                curve, _, index = metric.partition("@")
                if index:
                    curves.setdefault(curve, [0.0] * 4)[int(index)] = value * factor
                    continue
                scores.setdefault(metric.partition(":")[0], 1.0)
                scores[metric] = value if isinstance(value, tuple) else value * factor
            write(runs, name, scores, curves)


def satisfying():
    """Values under which every comparison of every statement holds by a wide margin.

    A few passes of "raise what must be greater" over all comparisons; bounds are kept.
    """
    values = {address: 1.0 for _, comparison in ALL for address in addresses(comparison)}
    for _ in range(60):
        for _, comparison in ALL:
            greater, than = comparison["greater"], comparison["than"]
            times = comparison.get("times", 1)
            if isinstance(than, str) and isinstance(greater, str):
                if values[greater] < 1.02 * times * values[than]:
                    values[greater] = 1.02 * times * values[than]
            elif isinstance(greater, str):
                values[greater] = max(values[greater], than + 0.05)
            else:
                values[than] = min(values[than], greater * 0.95)
    return values


def test_both_sweeps_expand_and_share_what_they_can(sweep):
    found = places(sweep)
    assert len([p for p in found if re.fullmatch(r"switching/\w+-[124]/(before|after)", p)]) == 30
    assert {"switching/true/before", "switching/false/before"} <= set(found)
    for intervals in (4, 8, 16):
        assert f"gaussian/causal_cd-euler-{intervals}/before" in found
    for place in ("switching/law/facts", "switching/real/floor", "gaussian/law/facts"):
        assert len(set(found[place].values())) == 1, "a fact of the law is measured once"
    for place in ("switching/causal_cd-1/before", "gaussian/causal_ode-heun-4/before"):
        assert len(set(found[place].values())) == len(SEEDS)
    switching = [run for run in sweep.runs.values() if run.scale == "switching"]
    recipes = [run.recipe["recipe"] for run in switching]
    assert recipes.count("stage1_teacher_forcing") == 3 and recipes.count("closed_form_clips") == 1
    assert recipes.count("stage3_asymmetric_dmd") == 45


def test_the_terminal_pair_is_all_that_differs_between_the_two_students_from_nothing(sweep):
    found = places(sweep)
    runs = sweep.runs
    students = [
        runs[found[f"switching/{pair}/before"][0]].needs["student"] for pair in ("true", "false")
    ]
    stages = [dict(run.recipe["stage"]) for run in students]
    assert [stage.pop("terminal_pair") for stage in stages] == [True, False]
    assert stages[0] == stages[1] and students[0].recipe["needs"] == students[1].recipe["needs"]
    assert students[0].needs["student"].recipe["fit"]["steps"] == 0, "it starts from nothing"


@pytest.mark.parametrize("name", sorted({name for name, _ in ALL}))
def test_a_statement_asks_cells_that_the_sweeps_have(sweep, name):
    known = places(sweep)
    for _, comparison in [pair for pair in ALL if pair[0] == name]:
        for address in addresses(comparison):
            assert address.rpartition("/")[0] in known, address


def test_what_has_not_been_run_is_said_to_be_so(sweep, tmp_path):
    groups = write_report(sweep, tmp_path, tmp_path / "out").groups
    assert {v.verdict for group in groups for v in group.verdicts} == {NOT_RUN}
    text = (tmp_path / "out" / "table.md").read_text()
    assert "Score runs: 0 of" in text and "holds" not in text.partition("## Few-step")[0][300:]
    html = (tmp_path / "out" / "index.html").read_text()
    assert "energy: not run" in html and "<svg" not in html


def test_numbers_that_agree_with_every_statement_hold_and_the_opposite_does_not(sweep, tmp_path):
    values = satisfying()
    made_up(sweep, tmp_path / "good", values, noise=1e-5)
    groups = judge(LAYOUT.claims, numbers_of(sweep, tmp_path / "good"))
    assert {v.id: v.verdict for g in groups for v in g.verdicts if v.verdict != HOLDS} == {}
    opposite = {address: 1 / value for address, value in values.items()}
    made_up(sweep, tmp_path / "bad", opposite, noise=1e-5)
    groups = judge(LAYOUT.claims, numbers_of(sweep, tmp_path / "bad"))
    verdicts = {v.id: v.verdict for g in groups for v in g.verdicts}
    assert {verdicts[name] for name in ("ar_worst", "sf_worse", "dmd_history")} == {FAILS}


def test_seeds_that_disagree_decide_nothing(sweep, tmp_path):
    made_up(sweep, tmp_path, satisfying(), noise=5.0)
    groups = judge(LAYOUT.claims, numbers_of(sweep, tmp_path))
    verdicts = {v.id: v.verdict for g in groups for v in g.verdicts}
    assert verdicts["ar_worst"] == UNDECIDED and verdicts["causal_injective"] == HOLDS


def test_a_margin_over_seeds_is_students_and_a_facts_is_its_own(sweep, tmp_path):
    trained = "switching/causal_cd-1/before/law.energy"
    made_up(sweep, tmp_path, {trained: 2.0, FACTS: (0.5, 0.4, 0.7)}, noise=0.1)
    numbers = numbers_of(sweep, tmp_path)
    margin = numbers.estimate([(1.0, trained)])  # 1.8, 2.0, 2.2
    assert margin.value == pytest.approx(2) and margin.seeds == 3
    assert margin.high - margin.value == pytest.approx(4.3027 * 0.2 / 3**0.5, rel=1e-3)
    fact = numbers.estimate([(1.0, FACTS)])
    assert (fact.value, fact.low, fact.high) == pytest.approx((0.5, 0.4, 0.7))
    flipped = numbers.estimate([(-2.0, FACTS)])
    assert (flipped.low, flipped.high) == pytest.approx((-1.4, -0.8))
    paired = numbers.estimate([(1.0, trained), (-1.0, trained)])
    assert paired.low == paired.high == 0, "formed within each seed"
    beside = numbers.estimate([(1.0, trained), (-2.0, FACTS)])
    half = margin.high - margin.value
    assert beside.value == pytest.approx(1) and beside.method == "t over seeds and Monte Carlo"
    assert beside.value - beside.low == pytest.approx((half**2 + 0.4**2) ** 0.5)
    assert beside.high - beside.value == pytest.approx((half**2 + 0.2**2) ** 0.5)


def test_an_order_is_formed_within_each_seed(sweep, tmp_path):
    place = "gaussian/causal_ode-euler-{}/before/law.flow_map:from_noise"
    made_up(sweep, tmp_path, {place.format(4): 0.8, place.format(16): 0.1}, noise=0.2)
    order = numbers_of(sweep, tmp_path).order(place.format(4), place.format(16), 4)
    assert (order.value, order.low, order.high) == pytest.approx((1.5, 1.5, 1.5))
    assert order.seeds == 3


def test_what_is_true_by_construction_is_marked_and_counted(sweep, tmp_path):
    groups = write_report(sweep, tmp_path, tmp_path / "out").groups
    marked = [v.id for g in groups for v in g.verdicts if "true by construction" in v.where]
    assert marked == ["causal_injective", "sf_ode_residual", "boundary_loss"]
    assert sum(group.constructed for group in groups) == len(marked)
    assert "3 of them are true by construction" in (tmp_path / "out" / "table.md").read_text()


def test_addresses_reach_extras_and_members_of_curves(sweep, tmp_path):
    place = "switching/causal_dmd/before"
    made_up(sweep, tmp_path, {f"{place}/law.next.variance:left": 0.5, f"{place}/law.x.y@-1": 3.0})
    numbers = numbers_of(sweep, tmp_path)
    assert numbers.estimate([(1.0, f"{place}/law.next.variance:left")]).value == pytest.approx(0.5)
    assert numbers.estimate([(1.0, f"{place}/law.x.y@-1")]).value == pytest.approx(3)
    assert numbers.estimate([(1.0, f"{place}/law.next.variance:right")]) is None
    assert numbers.estimate([(1.0, "switching/causal_cdd-1/before/law.energy")]) is None


def test_the_report_is_a_page_of_its_own_with_all_figures(sweep, tmp_path):
    values = satisfying()
    made_up(sweep, tmp_path, values)
    _add_curves(sweep, tmp_path)
    write_report(sweep, tmp_path, tmp_path / "out")
    html = (tmp_path / "out" / "index.html").read_text()
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [] and "<script" not in html
    assert all(link.startswith("#") for link in reader.links)
    assert html.count("<svg") == len(LAYOUT.figures) and "prefers-color-scheme: dark" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "figures side by side share no ids"
    for claim in ("real against real", "RMSE to the exact flow map", "exact sampler"):
        assert claim in html
    text = (tmp_path / "out" / "table.md").read_text()
    rows = [re.sub(r"\\\|", "", line) for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows if "Var(x0" in line} == {6}, "bars do not end cells"


def _add_curves(sweep, runs):
    """What figures draw beside the numbers."""
    shapes = {
        "law.injectivity.bidirectional.by_frame": 4, "law.injectivity.causal.by_frame": 4,
        "law.residual.bidirectional.by_frame": 4, "law.residual.causal.by_frame": 4,
        "law.order.euler.errors": 6, "law.order.heun.errors": 6,
        "law.flow_map.times": 5, "law.flow_map.by_time": 5,
        "law.flow_map.by_frame": 4, "law.energy_drift.by_frame": 4, "law.history.shifts": 4,
        "law.history.to_shifted": 4, "law.history.to_true": 4, "law.history.exact_to_true": 4,
        "law.modes.kl_covering.turns": 8,
    }  # fmt: skip
    for names in places(sweep).values():
        for name in names.values():
            if (runs / name).is_dir():
                curves = {m: [0.1 + 0.1 * i for i in range(n)] for m, n in shapes.items()}
                curves |= {
                    f"law.order.{name}.intervals": [2, 4, 8, 16, 32, 64]
                    for name in ("euler", "heun")
                }
                (runs / name / "curves.json").write_text(json.dumps(curves))


def test_the_command_prints_every_statement(tmp_path, capsys):
    assert command.main(["theory", "--seeds", "0", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for group in LAYOUT.claims["groups"]:
        assert group["title"] in said
    assert (tmp_path / "tables" / "theory" / "index.html").is_file()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.52312, "0.523"), (0.0, "0"), (3e-14, "3e-14"), (1234.5, "1,234"), (0.00052312, "0.000523")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_the_law_takes_every_sequence_of_turns_alike():
    axis = canvas(1, 1, 3, 3)[1][0, 0]
    shares = np.array([[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]])  # of three turns
    numbers = SimpleNamespace(frame=SimpleNamespace(curve=lambda address: shares))
    item = {"y": "a curve", "hue": "black", "label": "a student", "even": "the law"}
    assert drawn._points(axis, item, 0, numbers)
    (law,) = [line for line in axis.get_lines() if line.get_label() == "the law"]
    assert list(law.get_ydata()) == [0.125, 0.125]
    assert [tick.get_text() for tick in axis.get_xticklabels()][:2] == ["RRR", "LRR"]
