"""By which prompts VBench judges, and which videos: what judge.py gives it, what comes back."""

import json
from dataclasses import replace

import pytest
from vbench_files import MEANS, PROMPTS, SUITE, add, judge, score_run, scores

from experiments.runs.recipe import resolve, run_name
from experiments.verbs import score
from experiments.worlds.wan.benchmarks import DIMENSIONS, VBENCH
from experiments.worlds.wan.judge import SAMPLES, TEXT, WORDINGS, static_videos, suite_entries
from sweeps.report import results
from sweeps.report.layout import load_layout
from sweeps.report.table import _check_columns

TWO = [  # of the prompts that stand in two lists, lines with two extended wordings
    {"file": f"b-{n}.mp4", "prompt_en": "b", "prompt_used": used, "sample_index": n}
    for n, used in enumerate(["b at dawn", "b at dusk"] * 3)
]


def test_only_what_compares_with_a_text_gets_the_extended_prompt():
    suite = [{"prompt_en": "b", "dimension": list(DIMENSIONS), "auxiliary_info": {"x": 1}}]
    for dimension in DIMENSIONS:
        for wording in WORDINGS:
            found = suite_entries(suite, TWO, dimension, wording)
            assert all(entry["auxiliary_info"] == {"x": 1} for entry in found)
            paths = {path for entry in found for path in entry["video_list"]}
            assert paths == {f"videos/b-{n}.mp4" for n in range(SAMPLES)}
            by = {entry["prompt_en"]: entry["video_list"] for entry in found}
            if wording == "extended" and dimension in TEXT:
                assert by["b at dawn"] == [f"videos/b-{n}.mp4" for n in (0, 2, 4)]
                assert by["b at dusk"] == [f"videos/b-{n}.mp4" for n in (1, 3)]
            else:
                assert list(by) == ["b"]
    assert VBENCH["samples"] == SAMPLES


def test_a_prompt_without_videos_stays_in_the_list():
    suite = [{"prompt_en": "c", "dimension": ["temporal_style"]}]
    (entry,) = suite_entries(suite, TWO, "temporal_style", "extended")
    assert entry["prompt_en"] == "c" and entry["video_list"] == []


def test_the_static_filter_chooses_among_all_videos(sweep, tmp_path, monkeypatch):
    """The results name the videos themselves, not copies that are numbered anew."""
    folder = score_run(sweep.cells[0].runs["stage3"], tmp_path / "runs", PROMPTS, samples=8)
    asked = [e["prompt_en"] for e in SUITE if "temporal_flickering" in e["dimension"]]
    found = {p: {"static_count": 0, "static_path": []} for p in asked}
    for p in asked[:70]:  # of the last five nothing stands still
        found[p]["static_path"] = [f"videos/{p}-{n}.mp4" for n in (1, 3, 4, 5, 6, 7)]
    (tmp_path / "filtered").mkdir()
    (tmp_path / "filtered" / "filtered_static_video.json").write_text(json.dumps(found))
    monkeypatch.chdir(tmp_path)
    path = judge(folder.path, "temporal_flickering", 0.98, static=static_videos())
    paths = [e["video_path"] for e in json.loads(path.read_text())["temporal_flickering"][1]]
    kept = (1, 3, 4, 5, 6)
    assert paths == [f"videos/{p}-{n}.mp4" for p in asked[:70] for n in kept]
    assert add(folder.path) == 0
    record = scores(folder.path)["vbench.temporal_flickering"]
    assert record["n"] == 350 and record["extra"] == pytest.approx(
        {"static_filter": 1.0, "prompts": 75, "normalised": record["extra"]["normalised"]}
    )


@pytest.mark.parametrize("dimension", TEXT)
def test_results_by_the_other_wording_are_refused(run, capsys, dimension):
    path = judge(run, dimension, MEANS[dimension], wording="short")
    before = (run / "scores.jsonl").read_bytes()
    assert add(run) == 1
    said = capsys.readouterr().err
    assert str(path) in said and "is not its extended prompt (scoring.wording of this run)" in said
    assert "run evaluate.sh again" in said
    assert (run / "scores.jsonl").read_bytes() == before


def test_a_run_that_says_no_wording_was_judged_by_vbenchs_own(sweep, tmp_path, capsys):
    """Score runs from before the setting."""
    new = sweep.cells[0].runs["stage3"]
    recipe = {**new.recipe, "score": {"metrics": "all"}}
    old = replace(new, recipe=recipe, name=run_name(recipe))
    run = score_run(old, tmp_path / "runs", PROMPTS).path
    for dimension in TEXT:
        judge(run, dimension, MEANS[dimension], wording="extended")
    assert add(run) == 1 and "is not its short prompt" in capsys.readouterr().err
    for dimension in TEXT:
        judge(run, dimension, MEANS[dimension], wording="short")
    assert add(run) == 0
    assert scores(run)["vbench.temporal_style"]["backend"]["wording"] == "short"


def test_a_column_never_mixes_wordings(run, sweep, tmp_path):
    assert add(run) == 0
    other = tmp_path / "other"
    other.mkdir()
    text = (run / "scores.jsonl").read_text()
    (other / "curves.json").write_text((run / "curves.json").read_text())
    (other / "done.json").write_text("{}")
    columns = list(load_layout(sweep).columns.values())
    for wording, mixed in (("extended", False), ("short", True)):
        changed = text.replace('"wording": "extended"', f'"wording": "{wording}"')
        (other / "scores.jsonl").write_text(changed)
        runs = [results.read_score_run(folder) for folder in (run, other)]
        place = type("Place", (), {"done": runs})
        if mixed:
            with pytest.raises(ValueError, match=r"VBench Total: .*\(extended, short\): score all"):
                _check_columns([place], columns)
        else:
            _check_columns([place], columns)


def test_the_wording_is_a_setting():
    recipe = resolve("score", "wan1.3b").recipe
    assert recipe["score"]["wording"] == "extended"
    short = resolve("score", "wan1.3b", {"scoring.wording": "short"})
    assert short.name != resolve("score", "wan1.3b").name
    score.check(short.recipe)
    with pytest.raises(ValueError, match="scoring.wording: 'long' is none of extended, short"):
        score.check(resolve("score", "wan1.3b", {"scoring.wording": "long"}).recipe)
