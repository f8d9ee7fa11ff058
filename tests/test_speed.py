"""The score of speed: timed on this machine, by the bench's rollout, as columns of a table."""

import json

import pytest
from minimal import network

from experiments.bench.speed import check, run
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import resolve
from sweeps.plan.graph import Cell, Sweep
from sweeps.report.frame import Frame
from sweeps.report.layout import Column, Layout

BENCH = {
    "text_tokens": 3,
    "text_encoder": {"vocab_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1,
                     "num_heads": 2},
    "vae": {"base_dim": 3, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
}  # fmt: skip
SMALL = {"clip_shape": [3, 4, 4, 4], "score.repeats": 2, "score.warmup": 0, "bench": BENCH}


def test_throughput_and_latency_of_a_network(tmp_path):
    network(1).save_pretrained(tmp_path / "student")
    planned = resolve("score_speed", "tiny", SMALL | {"needs.timed": {"folder": str(tmp_path)}})
    check(planned.recipe)
    folder = tmp_path / "runs" / planned.name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps(planned.recipe))
    run(planned.recipe, RunFolder(folder))
    lines = (folder / "scores.jsonl").read_text().splitlines()
    found = {line["metric"]: line for line in map(json.loads, lines)}
    assert set(found) == {"speed.throughput", "speed.latency"}
    for line in found.values():
        assert line["n"] == 2 and line["kind"] == "exact"
        assert 0 < line["extra"]["p10"] <= line["value"] <= line["extra"]["p90"]
    assert found["speed.latency"]["higher_is_better"] is False
    assert found["speed.throughput"]["value"] < 9 / found["speed.latency"]["value"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"score.repeats": 0}, "score.repeats: 0 must be at least 1"),
        ({"blocks": 2}, "blocks: 2 cannot cover 3 frames"),
        ({"precision": "16"}, "score.precision: '16' is none of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        check(resolve("score_speed", "tiny", SMALL | settings).recipe)


def test_a_column_may_be_of_another_run_of_its_cell(tmp_path):
    """A row shows its own run's quality beside the speed that another run of the cell measured."""
    runs = {
        name: resolve("score_speed", "tiny", {"few_steps": n}) for n, name in enumerate("ab", 1)
    }
    values = {"a": ("world.total", 80.0), "b": ("speed.latency", 0.5)}
    for name, (metric, value) in values.items():
        folder = tmp_path / runs[name].name
        folder.mkdir()
        record = {"metric": metric, "value": value, "n": 3}
        (folder / "scores.jsonl").write_text(json.dumps(record) + "\n")
        (folder / "done.json").write_text("{}")
    columns = {
        "total": Column("total", "", "", "higher", metric="world.total"),
        "latency": Column("latency", "", "", "lower", metric="speed.latency", run="b"),
    }
    cells = [
        Cell({"few_steps": 1, "seed": 0}, runs),
        Cell({"few_steps": 2, "seed": 0}, {"a": runs["a"]}),
    ]
    frame = Frame(Sweep("s", "tiny", [0], cells), tmp_path, Layout(run="a", columns=columns))
    assert frame.values("few_steps=1/a/total")[0].value == 80.0
    assert frame.values("few_steps=1/a/latency")[0].value == 0.5
    assert frame.values("few_steps=2/a/latency") == {}, "that cell has no such run"
