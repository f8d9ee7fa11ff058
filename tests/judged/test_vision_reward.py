"""Dynamic Degree and VisionReward, which are judged on other prompts, into a score run."""

import json

import numpy as np
import pytest
from vbench_files import ACTIONS, add, judge, score_run, scores

from experiments.runs.recipe import resolve
from experiments.worlds.wan.benchmarks import WEIGHTS, reward
from sweeps.report import command


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
    """A score run on other prompts, of a student that is named by its folder (docs/wan.md)."""
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
    judge(folder, "dynamic_degree", 0.64, others=True)
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
    command.main("ablation", "wan1.3b", [0], run.parent)
    ours = capsys.readouterr().out.partition("paper, Wan2.1")[0]
    (row,) = [line for line in ours.splitlines() if "| causal CD |" in line and "±" in line]
    assert "| 64 ± " in row and f"{100 * mean:.3f} ± " in row


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
    judge(folder, "dynamic_degree", 0.64, others=True)
    assert add(run, "--motion", folder) == 1
    assert "not of the student of" in capsys.readouterr().err


def test_answers_of_another_program_or_editor_are_read(run, motion):
    """U+2028 inside a text ends no line, and some editors write UTF-16."""
    lines = [line | {"reasons": "it moves\u2028to the left"} for line in answers(motion)]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (motion / "vision_reward.jsonl").write_bytes(text.encode("utf-16"))
    assert add(run, "--motion", motion) == 0
    assert scores(run)["vision_reward.score"]["n"] == 100
