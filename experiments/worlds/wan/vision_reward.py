"""VisionReward's answers about the videos of a score run: vision_reward.jsonl, a line a video.

VisionReward publishes no program for many videos; whoever runs it writes, for each of them::

    {"file": <name in the manifest>, "prompt": <as it was asked>, "answers": [1 or -1, 29 of them],
     "score": <what its score() returns>, "instruct": 1 or -1}

`instruct` answers "Does the video meet some of the requirements stated in the text ...?", line 3 of
its 64 questions, which is not among the 29.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.curation.text_lists import read_lines
from experiments.worlds.wan.benchmarks import ROUNDED, WEIGHTS, reward
from experiments.worlds.wan.vbench_results import Video

NAME = "vision_reward.jsonl"


@dataclass(frozen=True)
class Answer:
    """About one video: the weighted sum, and whether the prompt is met to some extent (1, -1)."""

    score: float
    instruct: float


def read(run: Path, manifest: Mapping[str, Video]) -> dict[str, Answer] | None:
    """By file name; None when there is no such file.

    Raises:
        ValueError: damaged lines, lines of other videos, or answers other than 1 and -1.
    """
    path = run / NAME
    if not path.is_file():
        return None
    found: dict[str, Answer] = {}
    lowest = reward([-1] * len(WEIGHTS))
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error}); judge that video again") from None
        name = entry.get("file") if isinstance(entry, dict) else None
        if name not in manifest or name in found:
            what = "is there twice" if name in found else "is none of this run's videos"
            raise ValueError(f"{where}: {name!r} {what}; delete the line")
        found[name] = _answer(entry, manifest[name], where)
    if missed := sorted(set(manifest) - set(found)):
        raise ValueError(
            f"{path}: {len(found)} videos of {len(manifest)} were judged, not {missed[0]!r}:"
            " judge the rest"
        )
    if all(math.isclose(answer.score, lowest, abs_tol=ROUNDED) for answer in found.values()):
        raise ValueError(
            f"{path}: nobody ever answered yes: generation is broken (zai-org/VisionReward, issue"
            " 26); judge all of them again"
        )
    return found


def _answer(entry: dict[str, Any], video: Video, where: str) -> Answer:
    answers, score, instruct = (entry.get(key) for key in ("answers", "score", "instruct"))
    if entry.get("prompt") not in (video.prompt, video.prompt_used):
        raise ValueError(f"{where}: the prompt is not that of the video: judge it again")
    signs = isinstance(answers, list) and all(_sign(answer) for answer in answers)
    if not signs or len(answers) != len(WEIGHTS) or not _sign(instruct):
        raise ValueError(
            f"{where}: `answers` must be {len(WEIGHTS)} times 1 or -1, `instruct` one of them"
        )
    if not isinstance(score, float) or not math.isclose(
        score, reward(answers), rel_tol=0, abs_tol=ROUNDED
    ):
        raise ValueError(
            f"{where}: the score {score} is not that of its answers, {reward(answers):.4f}:"
            " answers in the order of VisionReward_video_qa_select.txt, weights of weight.json"
        )
    return Answer(score, float(instruct))


def _sign(value: Any) -> bool:
    return type(value) is int and value in (1, -1)
