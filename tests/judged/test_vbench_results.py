"""VBench's own files, from a score run's folder into the table; invalid ones."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from vbench_files import MEANS, PROMPTS, SUITE, add, judge, score_run, scores

from datamodules.shards.reader import ShardWriter, open_shards
from experiments.worlds.wan import vbench
from experiments.worlds.wan.benchmarks import DIMENSIONS, composites, normalised
from experiments.worlds.wan.vbench_results import Video, read_manifest
from sweeps.report import command
from sweeps.report.results import read_score_run


def test_the_manifest_is_the_one_that_is_laid_out(tmp_path):
    with ShardWriter(tmp_path / "shards", "prompts", about={}) as writer:
        for number in (1, 2, 3):
            info = {"caption": f"{number}, extended", "name": f"line-{number}"}
            writer.write(f"k{number}", {"text": np.zeros((1, 1), np.float32)}, info)
    shards = open_shards(tmp_path / "shards")
    lines = [json.dumps(e.about) for e in vbench._entries(shards, tmp_path, ["a", "b", "a"])]
    (tmp_path / "vbench").mkdir()
    (tmp_path / "vbench" / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    assert read_manifest(tmp_path) == {
        "a-0.mp4": Video("a", 0, "1, extended"),
        "b-0.mp4": Video("b", 0, "2, extended"),
        "a-1.mp4": Video("a", 1, "3, extended"),
    }


def test_a_student_is_sampled_for_every_line_of_vbenchs_prompts(sweep):
    """Its 944 prompts are 946 lines; fewer would be drawn of them, and leave prompts out."""
    sampled = {run.recipe["sample"]["count"] for run in sweep.runs.values() if run.verb == "sample"}
    assert sampled == {len(SUITE)} == {946} and len(PROMPTS) == 944


def test_what_vbench_wrote_becomes_scores(run):
    before = scores(run)
    assert add(run) == 0
    after = scores(run)
    assert list(after) == list(before), "the same records, in their order"
    assert all(after[m] == before[m] for m in before if m.startswith("videos."))
    for name, mean in MEANS.items():
        found = after[f"vbench.{name}"]
        assert found["value"] == pytest.approx(100 * mean, abs=0.7), name
        assert found["extra"]["normalised"] == pytest.approx(normalised(name, found["value"] / 100))
        dropped = 3 if name == "color" else 0
        assert found["n"] == DIMENSIONS[name]["prompts"] - dropped
        low, high = found["ci95"]
        assert low < found["value"] < high
        ((place, digest),) = found["inputs"]["results"].items()
        assert hashlib.sha256((run / place).read_bytes()).hexdigest() == digest
    exact = composites({n: after[f"vbench.{n}"]["value"] / 100 for n in DIMENSIONS})
    for name, value in exact.items():
        found = after[f"vbench.{name}"]
        assert found["value"] == pytest.approx(100 * value) and found["kind"] == "exact"
        assert found["ci95"][0] < found["value"] < found["ci95"][1]
        about = {"name": "vbench", "version": "0.1.5", "wording": "extended"}
        assert found["backend"] == about
    total = after["vbench.total"]
    assert total["value"] == pytest.approx(81.61, abs=0.3) and total["n"] == len(PROMPTS) - 3
    assert len(total["inputs"]["results"]) == 16
    assert after["vbench.dynamic"]["value"] is None, "of other prompts than the suite's"


def test_twice_gives_the_same_bytes(run):
    assert add(run) == 0
    first = (run / "scores.jsonl").read_bytes()
    assert add(run) == 0
    assert (run / "scores.jsonl").read_bytes() == first
    assert read_score_run(run), "its scores were replaced on purpose"
    (run / "scores.jsonl").write_bytes(first[: first.index(b"\n") + 1])
    with pytest.raises(ValueError, match=r"scores.jsonl: it has been replaced since"):
        read_score_run(run)
    assert not list(run.glob(".*.tmp"))


def test_dimensions_that_are_there_are_reported_and_no_total(run):
    assert add(run) == 0
    shutil.rmtree(run / "vbench" / "results" / "scene")
    assert add(run) == 0
    after = scores(run)
    assert after["vbench.scene"]["value"] is None
    assert after["vbench.color"]["value"] and after["vbench.quality"]["value"]
    for name in ("total", "semantic"):
        assert after[f"vbench.{name}"]["value"] is None, "not what it was before"
        assert after[f"vbench.{name}"]["skipped"].endswith("no whole result of scene")


def test_a_prompt_without_a_video_is_no_result_of_its_dimensions(sweep, tmp_path):
    folder = score_run(sweep.cells[0].runs["stage3"], tmp_path, PROMPTS[1:])
    for name in ("motion_smoothness", "color"):
        judge(folder.path, name, MEANS[name])
    assert add(folder.path) == 0
    after = scores(folder.path)
    assert "1 of its 72 prompts have no video" in after["vbench.motion_smoothness"]["skipped"]
    assert after["vbench.color"]["value"] is not None


def test_five_of_six_samples_and_the_static_filter(sweep, tmp_path):
    """VBench looks at five videos of a prompt; the filter copies those that stand still."""
    folder = score_run(sweep.cells[0].runs["stage3"], tmp_path, PROMPTS, samples=6)
    for name in ("color", "scene"):
        judge(folder.path, name, MEANS[name])
    path = judge(folder.path, "temporal_flickering", 0.98, folder="filter_results/filtered_videos")
    result = json.loads(path.read_text())
    kept = result["temporal_flickering"][1][:80]
    mean = float(np.mean([entry["video_results"] for entry in kept]))
    path.write_text(json.dumps({"temporal_flickering": [mean, kept]}))
    assert add(folder.path) == 0
    found = scores(folder.path)["vbench.temporal_flickering"]
    assert found["n"] == 80 and found["extra"]["static_filter"] == 1.0
    assert scores(folder.path)["vbench.color"]["n"] == 5 * 85 - 3
    assert scores(folder.path)["vbench.scene"]["n"] == 5 * 86


def test_the_table_shows_them(run, sweep, capsys):
    command.main("ablation", "wan1.3b", [0], run.parent)
    assert "VBench Total" in capsys.readouterr().out
    assert add(run) == 0
    command.main("ablation", "wan1.3b", [0], run.parent)
    ours = capsys.readouterr().out.partition("paper, Wan2.1")[0]
    two = ours.partition("| 2-step |")[2].partition("| 4-step |")[0]
    (row,) = [line for line in two.splitlines() if "| causal CD |" in line]
    total = scores(run)["vbench.total"]
    half = (total["ci95"][1] - total["ci95"][0]) / 2
    assert f"{total['value']:.2f} ± {half:.2f}" in row
    assert row.count("not run") >= 3, "Dynamic Degree, VisionReward, Instruct"
    (other,) = [line for line in two.splitlines() if "| causal ODE |" in line]
    assert "not run" in other and "±" not in other


NAME = "results_2026-11-21-18:22:33_eval_results.json"


def _edit(run, dimension, change):
    path = run / "vbench" / "results" / dimension / NAME
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def _nan(found):
    found["scene"] = [float("nan"), []]


def _nan_video(found):
    found["scene"][1][3]["video_results"] = float("nan")


def _other_video(found):
    found["scene"][1][0]["video_path"] = "videos/a cat-0.mp4"


def _other_dimension_video(found):
    found["scene"][1][0]["video_path"] = f"videos/{PROMPTS[0]}-0.mp4"


def _one_more(found):
    more = {"video_path": f"videos/{PROMPTS[0]}-0.mp4", "video_results": found["scene"][0]}
    found["scene"][1].append(more)


def _twice(found):
    found["scene"][1].append(found["scene"][1][0])


def _fewer(found):
    found["scene"][1].pop()


def _other_mean(found):
    found["scene"][0] += 1e-4


def _unknown(found):
    found["charm"] = found.pop("scene")


def _no_pair(found):
    found["scene"] = found["scene"][0]


def _null(found):
    found["scene"][0] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, r"scene: no video was judged; VBench looks for <prompt>-0.mp4"),
        (_nan_video, "scene: nan is no score"),
        (_null, "scene: None is no score"),
        (_other_video, "'a cat-0.mp4' .* is none of this run's videos"),
        (_other_dimension_video, "86 videos were judged, the manifest has 86 for it, also"),
        (_one_more, "-0.mp4' .* is of none of its prompts"),
        (_twice, "a video is there twice"),
        (_fewer, "85 videos were judged, the manifest has 86 for it"),
        (_other_mean, "is not the mean of its videos.*--ngpus 1"),
        (_unknown, "charm: VBench has no such dimension"),
        (_no_pair, r"not \[score, videos\]"),
    ],
)
def test_results_that_cannot_be_are_refused_with_the_cure(run, capsys, change, message):
    before = (run / "scores.jsonl").read_bytes()
    _edit(run, "scene", change)
    assert add(run) == 1
    said = capsys.readouterr().err
    assert str(run / "vbench" / "results" / "scene" / NAME) in said and "Traceback" not in said
    assert re.search(message, said), said
    assert "run evaluate.sh again" in said
    assert (run / "scores.jsonl").read_bytes() == before


def test_half_a_file_no_info_and_two_results_are_refused(run, capsys):
    scene = run / "vbench" / "results" / "scene"
    info, result = sorted(scene.iterdir())[::-1]
    whole = result.read_text()
    result.write_text(whole[:-20])
    assert add(run) == 1 and "not whole" in capsys.readouterr().err
    result.write_text(whole)
    again = scene / "results_2026-11-22-00:00:00_eval_results.json"
    shutil.copy(result, again)
    assert add(run) == 1 and "no such file; VBench writes it beside" in capsys.readouterr().err
    shutil.copy(info, scene / "results_2026-11-22-00:00:00_full_info.json")
    assert add(run) == 1 and "judged twice" in (said := capsys.readouterr().err)
    assert "delete the older" in said and str(result) in said


def test_other_prompts_are_not_the_suite(run, capsys):
    path = judge(run, "motion_smoothness", 0.97, others=True)
    assert add(run) == 1
    said = capsys.readouterr().err
    assert f"judged on {len(PROMPTS)} prompts, VBench has 72" in said
    assert str(path) in said


def test_what_is_no_finished_score_run_is_refused(run, tmp_path, capsys):
    assert add(tmp_path) == 1 and "not a run folder" in capsys.readouterr().err
    (sample,) = run.parent.glob("sample-*")
    assert add(sample) == 1 and "not a score run for VBench" in capsys.readouterr().err
    shutil.rmtree(run / "vbench" / "results")
    assert add(run) == 1 and "sh " in (said := capsys.readouterr().err) and "no results" in said
    (run / "done.json").unlink()
    assert add(run) == 1 and "not done: python -m experiments score" in capsys.readouterr().err
