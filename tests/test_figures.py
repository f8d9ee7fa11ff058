"""Figures: a row is drawn at the height of its own name, and in a colour of its own."""

import re
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from synthetic_sweep import make_sweep, numbers_of, table_of

from sweeps.plan.graph import Cell
from sweeps.report import drawn, figures
from sweeps.report.layout import SPARE_COLOURS, spare_colours
from sweeps.report.table import our_table


@pytest.fixture
def kept(monkeypatch):
    """Every figure that is drawn, as matplotlib's instead of as text."""
    found = []

    def keep(figure, name):
        found.append(figure)
        return name

    for module in (figures, drawn):
        monkeypatch.setattr(module, "svg", keep)
    return found


def _uneven(sweep):
    """Its first block without most of its rows and with one that the other blocks lack."""
    only = {"causal_cd", "causal_dmd"}
    cells = [c for c in sweep.cells if c.labels.get("few_steps") != 1 or c.labels["init"] in only]
    new = next(c for c in cells if c.labels == {"init": "causal_dmd", "few_steps": 1, "seed": 0})
    return replace(sweep, cells=[*cells, Cell(new.labels | {"init": "causal_new"}, new.runs)])


def _named_points(axis):
    """Name (of its height) and colour of every marker."""
    places = axis.get_yticks()  # a panel that shares its axis hides its labels, which it yet has
    names = dict(zip(places, axis.yaxis.get_major_formatter().format_ticks(places), strict=True))
    dots = [line for line in axis.get_lines() if line.get_marker() == "o"]
    return {(names[dot.get_ydata()[0]], to_hex(dot.get_markeredgecolor())) for dot in dots}


def test_every_panel_shows_the_rows_of_its_block_by_their_own_names(tmp_path, kept):
    numbers = numbers_of(_uneven(make_sweep(tmp_path, clips=False)), tmp_path)
    table = our_table(numbers)
    assert [len(block.rows) for block in table.blocks] == [3, 5, 5]
    assert figures.compare(numbers, table).svg
    axes = kept[0].axes
    assert [axis.get_title() for axis in axes[:3]] == ["1-step", "2-step", "4-step"]
    assert len(axes) == 3 * len(numbers.layout.compare["columns"])
    for number, axis in enumerate(axes):
        rows = table.blocks[number % 3].rows
        assert _named_points(axis) == {(row.name, row.colour) for row in rows}


def test_panels_of_a_drawn_figure_with_different_dumbbells_keep_their_own_names(tmp_path, kept):
    numbers = numbers_of(make_sweep(tmp_path, clips=False), tmp_path)

    def panel(*inits):
        ends = ["{init}-1/stage2/total", "{init}-1/stage3/total"]
        return {"x": "Total", "dumbbells": [
            {"each": {"init": list(inits)}, "of": "{init}", "ends": ends}
        ]}  # fmt: skip

    both, other = panel("causal_cd", "causal_dmd"), panel("causal_ode")
    about = {"id": "mine", "claim": "", "size": [6, 2]}
    for panels in ([both, other], [other, both], [both, both]):
        numbers.layout = replace(numbers.layout, figures=[about | {"panels": panels}])
        assert drawn.drawn(numbers) == {"mine": "mine"}
        axes = kept.pop().axes
        for axis, said in zip(axes, panels, strict=True):
            inits = said["dumbbells"][0]["each"]["init"]
            layout = numbers.layout
            expected = {(layout.names["init"][init], layout.colours[init]) for init in inits}
            assert _named_points(axis) == expected
        shared = axes[0].get_shared_y_axes().joined(*axes)
        assert shared == (panels[0] == panels[1])


def test_the_cost_of_a_stage_2_that_blocks_do_not_share_names_its_block(tmp_path, kept):
    """Causal DMD's Stage 2 takes 80 s, causal CD's 70 s: as if 4 steps had needed another one."""
    sweep = make_sweep(tmp_path, clips=False)
    four = {c.labels["init"]: c for c in sweep.cells if c.labels.get("few_steps") == 4}
    other = Cell(four["causal_cd"].labels, four["causal_dmd"].runs)
    cells = [other if cell is four["causal_cd"] else cell for cell in sweep.cells]
    numbers = numbers_of(replace(sweep, cells=cells), tmp_path)
    figures.cost(numbers, our_table(numbers))
    (axis,) = kept[0].axes
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    ends = {bar.get_y() + 0.3: bar.get_x() + bar.get_width() for bar in axis.patches}
    seconds = {name: round(ends[place]) for place, name in enumerate(names)}
    assert seconds.pop("causal CD, 1-step") == 70 and seconds.pop("causal CD, 4-step") == 80
    assert seconds == {"SF-ODE": 180, "causal ODE": 300, "causal DMD": 80}


def test_blocks_come_as_the_names_have_them_then_by_size_then_by_letter(tmp_path):
    sweep = make_sweep(tmp_path, clips=False)
    runs = next(iter(sweep.cells)).runs
    cells = [
        Cell(({} if at is None else {"setting": at}) | {"init": init, "seed": 0}, runs)
        for at in (None, "beta", 16, "alpha", 4, "first", "second")
        for init in ("causal_cd", "causal_ode")
    ]
    names = {"setting": {"second": "named 1", "first": "named 2", "never": "named 3"}}
    layout = {"run": "stage3", "blocks": "setting"}
    rest = ["4", "16", "alpha", "beta", ""]
    for said, expected in (
        ({"names": names}, ["named 1", "named 2", *rest]),
        ({"names": {"setting": "{}"}}, ["4", "16", "alpha", "beta", "first", "second", ""]),
    ):
        table = table_of(replace(sweep, cells=cells, table=layout | said), tmp_path)
        assert [block.title for block in table.blocks] == expected


def test_rows_that_the_layout_does_not_colour_take_colours_that_it_does_not_use(tmp_path):
    numbers = numbers_of(_uneven(make_sweep(tmp_path, clips=False)), tmp_path)
    used = {"causal_cd": SPARE_COLOURS[0].upper(), "causal_ode": SPARE_COLOURS[2]}
    for colours in (used, dict(zip(["causal_cd", *"abcdefghijk"], SPARE_COLOURS, strict=False))):
        numbers.layout = replace(numbers.layout, colours=colours)
        found = {row.id: row.colour.lower() for row in our_table(numbers).rows}
        assert len(found) == 6 == len(set(found.values()))
        others = {colour for id, colour in found.items() if id not in colours}
        assert not others & {colour.lower() for colour in colours.values()}
    numbers.layout = replace(numbers.layout, colours=used)
    spare = {row.colour for row in our_table(numbers).rows if row.id not in used}
    assert spare == {SPARE_COLOURS[1], *SPARE_COLOURS[3:6]}, "none is passed over"


@given(st.sets(st.sampled_from(SPARE_COLOURS)), st.integers(0, 60))
def test_spare_colours_do_not_end_and_do_not_repeat(used, count):
    found = list(islice(spare_colours(used), count))
    assert len({*found, *used}) == count + len(used)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in found)
