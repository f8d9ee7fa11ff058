"""VBench's and VisionReward's own files, from a score run's folder into the table."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vbench_files import ACTIONS, PROMPTS, SUITE, judge, score_run

from datamodules.shards import ShardWriter, open_shards
from experiments.__main__ import main
from experiments.metrics.benchmarks import (
    DIMENSIONS,
    WEIGHTS,
    composites,
    lacking,
    normalised,
    resampled,
    reward,
)
from experiments.recipe import resolve
from experiments.scoring import vbench
from experiments.scoring.vbench_results import Video, read_manifest
from sweeps import table
from sweeps.graph import load_sweep

# Show-o2 (arXiv 2506.15564), Table 8: Total, Quality, Semantic, then the dimensions in the order of
# benchmarks.yaml but for dynamic degree, which stands before aesthetic quality in both.
PUBLISHED = {
    "ModelScope": [75.75, 78.05, 66.54, 89.87, 95.29, 98.28, 95.79, 66.39, 52.06, 58.57, 82.25,
                   38.98, 92.40, 81.72, 33.68, 39.26, 23.39, 25.37, 25.67],
    "Pika-1.0": [80.69, 82.92, 71.77, 96.94, 97.36, 99.74, 99.50, 47.50, 62.04, 61.87, 88.72,
                 43.08, 86.20, 90.57, 61.03, 49.83, 22.26, 24.22, 25.94],
    "VideoCrafter-2.0": [80.44, 82.20, 73.42, 96.85, 98.22, 98.41, 97.73, 42.50, 63.13, 67.22,
                         92.55, 40.66, 95.00, 92.92, 35.86, 55.29, 25.13, 25.84, 28.23],
    "CogVideoX-5B": [81.61, 82.75, 77.04, 96.23, 96.52, 98.66, 96.92, 70.97, 61.98, 62.90, 85.23,
                     62.11, 99.40, 82.81, 66.35, 53.20, 24.91, 25.38, 27.59],
    "Gen-3": [82.32, 84.11, 75.17, 97.10, 96.62, 98.61, 99.23, 60.14, 63.34, 66.82, 87.81, 53.64,
              96.40, 80.90, 65.09, 54.57, 24.31, 24.71, 26.69],
}  # fmt: skip
MEANS = dict(zip(DIMENSIONS, np.array(PUBLISHED["CogVideoX-5B"][3:]) / 100, strict=True))
SCORES = st.fixed_dictionaries({name: st.floats(0, 1) for name in DIMENSIONS})


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_totals_come_out_of_published_dimensions(model):
    total, quality, semantic, *dimensions = PUBLISHED[model]
    scores = dict(zip(DIMENSIONS, np.array(dimensions) / 100, strict=True))
    found = composites(scores)
    # All are printed to 0.01; by that the dimensions lose at most 0.009 of Quality or Semantic.
    for name, printed in (("total", total), ("quality", quality), ("semantic", semantic)):
        assert 100 * found[name] == pytest.approx(printed, abs=0.014), name


@given(SCORES, SCORES, st.sampled_from(list(DIMENSIONS)))
def test_composites_are_weighted_means_of_normalised_dimensions(scores, other, name):
    found = composites(scores)
    assert found["total"] == pytest.approx((4 * found["quality"] + found["semantic"]) / 5)
    # Affine: the composite of a mixture is the mixture of the composites; nothing is clipped.
    mixed = composites({d: 0.3 * scores[d] + 0.7 * other[d] for d in DIMENSIONS})
    for composite, value in composites(other).items():
        assert mixed[composite] == pytest.approx(0.3 * found[composite] + 0.7 * value, abs=1e-9)
    # One dimension from min to max moves its composite by its share, and nothing else.
    about = DIMENSIONS[name]
    low, high = (composites(scores | {name: about[end]}) for end in ("min", "max"))
    share = {"quality": about["weight"] / 6.5, "semantic": about["weight"] / 9}[about["of"]]
    rest = {"quality": "semantic", "semantic": "quality"}[about["of"]]
    assert high[about["of"]] - low[about["of"]] == pytest.approx(share)
    assert high[rest] == low[rest]


def test_the_ends_of_the_scale():
    for end, value in (("min", 0.0), ("max", 1.0)):
        found = composites({name: about[end] for name, about in DIMENSIONS.items()})
        assert found == pytest.approx({"quality": value, "semantic": value, "total": value})
    assert normalised("scene", 0.9) > 1 and normalised("temporal_flickering", 0.5) < 0


@pytest.mark.parametrize("gone", DIMENSIONS)
def test_without_a_dimension_there_is_no_total(gone):
    scores = {name: about["max"] for name, about in DIMENSIONS.items() if name != gone}
    other = {"quality": "semantic", "semantic": "quality"}[DIMENSIONS[gone]["of"]]
    assert composites(scores) == {other: 1.0}
    assert lacking("total", scores) == [gone] and lacking(other, scores) == []


def test_a_prompt_is_drawn_with_all_its_videos_and_for_all_that_it_serves():
    rng = np.random.default_rng(0)
    videos = {f"{p}-{i}": v for p, v in enumerate(rng.normal(size=200)) for i in range(3)}
    prompts = {name: name.partition("-")[0] for name in videos}
    once = {name: value for name, value in videos.items() if name.endswith("-0")}
    found = resampled({"a": videos, "b": {n: 2 * v for n, v in videos.items()}}, prompts, 0)
    np.testing.assert_allclose(found["b"], 2 * found["a"])
    np.testing.assert_allclose(found["a"], resampled({"a": once, "b": once}, prompts, 0)["a"])
    error = np.std(list(once.values()), ddof=1) / math.sqrt(200)
    assert np.std(found["a"]) == pytest.approx(error, rel=0.1)
    apart = {"a": once, "b": {f"x{n}": v for n, v in once.items()}}
    apart = resampled(apart, prompts | {f"x{n}": f"x{n}" for n in once}, 0)
    assert abs(np.corrcoef(apart["a"], apart["b"])[0, 1]) < 0.1


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


@pytest.fixture(scope="module")
def sweep():
    return load_sweep("ablation", "wan1.3b")


@pytest.fixture(scope="module")
def laid_out(sweep, tmp_path_factory):
    """A finished score run of causal CD at two steps, and all that VBench says about it."""
    runs = tmp_path_factory.mktemp("laid_out")
    labels = {"few_steps": 2, "init": "causal_cd", "seed": 0}
    (cell,) = [cell for cell in sweep.cells if cell.labels == labels]
    folder = score_run(cell.runs["stage3"], runs, PROMPTS)
    for name, mean in MEANS.items():
        judge(folder.path, name, mean)
    (folder.path / "vbench" / "results" / "version.txt").write_text("0.1.5\n")
    return folder.path


@pytest.fixture
def run(laid_out, tmp_path):
    shutil.copytree(laid_out.parent, tmp_path / "runs")
    return tmp_path / "runs" / laid_out.name


def test_a_student_is_sampled_for_every_line_of_vbenchs_prompts(sweep):
    """Its 944 prompts are 946 lines; fewer would be drawn of them, and leave prompts out."""
    sampled = {run.recipe["sample"]["count"] for run in sweep.runs.values() if run.verb == "sample"}
    assert sampled == {len(SUITE)} == {946} and len(PROMPTS) == 944


def scores(run):
    lines = (run / "scores.jsonl").read_text().splitlines()
    return {record["metric"]: record for record in map(json.loads, lines)}


def add(run, *words):
    return main(["results", str(run), *map(str, words)])


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
        assert found["backend"] == {"name": "vbench", "version": "0.1.5"}
    total = after["vbench.total"]
    assert total["value"] == pytest.approx(81.61, abs=0.3) and total["n"] == len(PROMPTS) - 3
    assert len(total["inputs"]["results"]) == 16
    assert after["vbench.dynamic"]["value"] is None, "of other prompts than the suite's"


def test_twice_gives_the_same_bytes(run):
    assert add(run) == 0
    first = (run / "scores.jsonl").read_bytes()
    assert add(run) == 0
    assert (run / "scores.jsonl").read_bytes() == first
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
    table.main("ablation", "wan1.3b", [0], run.parent)
    assert "VBench Total" in capsys.readouterr().out
    assert add(run) == 0
    table.main("ablation", "wan1.3b", [0], run.parent)
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
    path = judge(run, "motion_smoothness", 0.97, mode="custom_input")
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


def answers(run, yes=0.8, **changes):
    """vision_reward.jsonl of a run's videos; the share of yes is over all questions."""
    rng = np.random.default_rng(0)
    lines = []
    for line in map(json.loads, (run / "vbench/manifest.jsonl").read_text().splitlines()):
        given = [1 if rng.random() < yes else -1 for _ in WEIGHTS]
        lines.append(
            {"file": line["file"], "prompt": line["prompt_used"], "answers": given,
             "score": reward(given) + 1e-6, "instruct": 1 if rng.random() < 0.78 else -1}
        )  # fmt: skip
    lines[4] |= changes
    (run / "vision_reward.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return lines


def of_motion(sweep, runs, init):
    """A score run on other prompts, of a student that is named by its folder (README)."""
    labels = {"few_steps": 2, "init": init, "seed": 0}
    (cell,) = [cell for cell in sweep.cells if cell.labels == labels]
    student = cell.runs["stage3"].needs["samples"].needs["student"]
    samples = {"few_steps": 2, "needs": {"student": {"folder": str(runs / student.name)}}}
    settings = {"sampling.count": 100, "vbench": "data/motion"}
    return resolve("score", "wan1.3b", settings | {"needs.samples": {"recipe": "sample"} | samples})


@pytest.fixture
def motion(run, sweep):
    """A score run of the same student on the hundred prompts of actions."""
    folder = score_run(of_motion(sweep, run.parent, "causal_cd"), run.parent, ACTIONS).path
    assert folder != run
    judge(folder, "dynamic_degree", 0.64, mode="custom_input")
    return folder


def test_dynamic_degree_and_vision_reward_are_of_the_motion_prompts(run, motion, capsys):
    lines = answers(motion)
    assert add(run, "--motion", motion) == 0
    after = scores(run)
    dynamic = after["vbench.dynamic"]
    assert dynamic["value"] == pytest.approx(64.0) and dynamic["n"] == 100
    assert 8 < (dynamic["ci95"][1] - dynamic["ci95"][0]) / 2 < 11, "twice a standard error of 4.8"
    assert dynamic["inputs"]["motion"] == motion.name
    assert after["vbench.dynamic_degree"]["value"] == pytest.approx(70.83, abs=0.01), "the suite's"
    mean = np.mean([line["score"] for line in lines])
    assert after["vision_reward.score"]["value"] == pytest.approx(100 * mean)
    share = np.mean([line["instruct"] == 1 for line in lines])
    assert after["vision_reward.instruct"]["value"] == pytest.approx(100 * (2 * share - 1))
    first = (run / "scores.jsonl").read_bytes()
    assert add(run) == 0
    assert (run / "scores.jsonl").read_bytes() == first, "what another run gave stays"
    table.main("ablation", "wan1.3b", [0], run.parent)
    ours = capsys.readouterr().out.partition("paper, Wan2.1")[0]
    (row,) = [line for line in ours.splitlines() if "| causal CD |" in line and "±" in line]
    assert "| 64 ± " in row and f"{100 * mean:.3f} ± " in row


def test_vision_reward_is_its_formula():
    assert len(WEIGHTS) == 29 and WEIGHTS.sum() == pytest.approx(6.27717, abs=1e-4)
    assert reward([1] * 29) == pytest.approx(0.216454, abs=1e-5) == -reward([-1] * 29)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": 0.2}, "jsonl:5: the score 0.2 is not that of its answers"),
        ({"score": float("nan")}, "the score nan is not"),
        ({"answers": [1] * 28}, "must be 29 times 1 or -1"),
        ({"answers": [True] * 29}, "must be 29 times 1 or -1"),
        ({"instruct": 0}, "`instruct` one of them"),
        ({"file": "a cat-0.mp4"}, "'a cat-0.mp4' is none of this run's videos"),
        ({"file": f"{ACTIONS[0]}-0.mp4"}, "is there twice"),
        ({"prompt": "another"}, "the prompt is not that of the video"),
    ],
)
def test_answers_that_cannot_be_are_refused(run, motion, capsys, changes, message):
    answers(motion, **changes)
    before = (run / "scores.jsonl").read_bytes()
    assert add(run, "--motion", motion) == 1 and message in capsys.readouterr().err
    assert (run / "scores.jsonl").read_bytes() == before


def test_no_yes_at_all_and_videos_without_answers_are_refused(run, motion, capsys):
    answers(motion, yes=0.0)
    assert (
        add(run, "--motion", motion) == 1 and "nobody ever answered yes" in capsys.readouterr().err
    )
    lines = answers(motion)
    (motion / "vision_reward.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert add(run, "--motion", motion) == 1
    assert "1 videos of 100 were judged" in capsys.readouterr().err


def test_another_students_motion_is_refused(run, sweep, capsys):
    folder = score_run(of_motion(sweep, run.parent, "causal_ode"), run.parent, ACTIONS).path
    judge(folder, "dynamic_degree", 0.64, mode="custom_input")
    assert add(run, "--motion", folder) == 1
    assert "not of the student of" in capsys.readouterr().err


FAKE = """#!/bin/sh
# evaluate --videos_path videos --dimension D --mode M --output_path TO
echo "$*" >> calls.txt
[ "$5" = color ] && [ ! -e mended ] && exit 0
mkdir -p "$9" && cp {shelf}/"$5"/* "$9"
"""


def test_evaluate_sh_judges_what_is_not_judged_yet(sweep, tmp_path):
    """With a program in VBench's place that writes its files and, like it, always ends with 0."""
    run = score_run(sweep.cells[0].runs["stage3"], tmp_path / "runs", PROMPTS).path
    here, tools, shelf = run / "vbench", tmp_path / "bin", tmp_path / "shelf"
    wanted = ("scene", "color", "human_action")
    for dimension in (*wanted, "dynamic_degree"):
        judge(run, dimension, MEANS[dimension])
    (here / "results").rename(shelf)
    (here / "evaluate.sh").write_text(vbench._SCRIPT.format(dimensions=" ".join(wanted)))
    tools.mkdir()
    for name, text in (
        ("vbench", FAKE.format(shelf=shelf)),
        ("python", "#!/bin/sh\necho 0.1.5\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}

    def evaluate(*words):
        command = ["sh", str(here / "evaluate.sh"), *words]
        done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
        return done, (here / "calls.txt").read_text().splitlines()

    def call(dimension, mode="vbench_standard"):
        to = f"--mode {mode} --output_path results/{dimension}"
        return f"evaluate --videos_path videos --dimension {dimension} {to}"

    done, calls = evaluate()
    assert done.returncode == 1 and "no results: color" in done.stdout, done.stderr
    assert calls == [call(dimension) for dimension in wanted]
    (here / "mended").touch()
    done, calls = evaluate()
    assert done.returncode == 0 and calls[3:] == [call("color")], done.stderr
    assert add(run) == 0
    assert scores(run)["vbench.color"]["backend"]["version"] == "0.1.5"
    done, calls = evaluate("motion")
    assert done.returncode == 0 and calls[4:] == [call("dynamic_degree", "custom_input")]
