"""`python -m experiments results`: what VBench and VisionReward wrote, into a run's scores.jsonl.

The suite's dimensions and Quality, Semantic and Total come from the score run itself. Dynamic
Degree (`vbench.dynamic`) and VisionReward use another list of prompts, so they come from another
score run of the same student; the dynamic degree inside Quality is never used instead.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.atomic import write_text
from datamodules.curation.text_lists import read_lines
from experiments.metrics.records import record
from experiments.metrics.registry import METRICS, Measurement
from experiments.metrics.statistics import LEVEL
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import RUN_NAME
from experiments.runs.unchanged import check_result
from experiments.worlds.wan import (
    vbench_results,
    videos,  # noqa: F401  registers the metrics
    vision_reward,
)
from experiments.worlds.wan.benchmarks import (
    DIMENSIONS,
    HASH,
    VBENCH,
    composites,
    lacking,
    normalised,
    resampled,
)
from experiments.worlds.wan.judge import SHORT
from experiments.worlds.wan.vbench_results import Judged, Video

log = logging.getLogger(__name__)
WHICH = ("count", "first", "batch", "save")  # which clips, not how they are sampled


def add_results(run: Path, motion: Path | None = None) -> list[dict[str, Any]]:
    """Replace "not run" in ``run``'s scores.jsonl by the results; returns the file.

    The file is replaced atomically and depends on the results alone (idempotent). Without
    ``motion`` the records that rest on another run are unchanged.

    Raises:
        ValueError: no finished score run for VBench; results that are damaged or of other videos;
            nothing to read; ``motion`` is of another student.
    """
    folder = _scored(run)
    path = folder.path / "scores.jsonl"
    before = [json.loads(line) for _, line in read_lines(path)]
    manifest = vbench_results.read_manifest(folder.path)
    judged = vbench_results.read(folder.path, manifest, _wording(folder))
    if not judged and motion is None:
        raise ValueError(
            f"{folder.path / 'vbench' / 'results'}: no results; first, in VBench's environment,"
            f" sh {folder.path / 'vbench' / 'evaluate.sh'}"
        )
    made = _suite(folder, judged, manifest, _inputs(folder))
    if motion is not None:
        other = _scored(motion)
        _same_student(folder, other)
        made += _motion(other, _inputs(folder))
    by_id = {entry["metric"]: entry for entry in [*before, *made]}
    ordered = [name for name in METRICS if name in by_id]
    ordered += [name for name in by_id if name not in METRICS]
    lines = [json.dumps(by_id[name], allow_nan=False) for name in ordered]
    write_text(path, "\n".join(lines) + "\n")
    folder.renew_result(path.name)
    for entry in made:
        value = entry["skipped"] if entry["value"] is None else f"{entry['value']:.3f}"
        log.info("%-32s %s", entry["metric"], value)
    log.info("%s", path)
    return made


def _scored(path: Path) -> RunFolder:
    folder = RunFolder(path)
    if not (folder.path / "recipe.yaml").is_file():
        raise ValueError(f"{path}: not a run folder; give that of a score run, runs/score-...")
    if folder.recipe["verb"] != "score" or "benchmark" not in folder.recipe["needs"]:
        raise ValueError(f"{path}: not a score run for VBench (its recipe needs no benchmark)")
    if not folder.done:
        raise ValueError(f"{path}: {folder.state()}, not done: {folder.command}")
    check_result(folder)
    return folder


def _wording(folder: RunFolder) -> str:
    """The prompts that VBench compares the run's videos with; runs that do not say: its own."""
    return folder.recipe["score"].get("wording", SHORT)


def _inputs(folder: RunFolder) -> dict[str, Any]:
    """The inputs that the run's own records name."""
    _, first = next(read_lines(folder.path / "scores.jsonl"))
    return {
        key: json.loads(first)["inputs"][key] for key in ("samples", "samples_fingerprint", "seed")
    }


def _same_student(folder: RunFolder, other: RunFolder) -> None:
    """The clips of both runs must be of one student, sampled alike."""
    made = []
    for each in (folder, other):
        samples = RunFolder(each.need("samples"))
        student = samples.recipe["needs"]["student"]
        beside = RUN_NAME.fullmatch(student) is not None
        where = samples.path.parent / student if beside else Path(student).expanduser().resolve()
        where = samples.recipe.get("contents", {}).get("student", where)
        how = {name: v for name, v in samples.recipe["sample"].items() if name not in WHICH}
        made.append((where, how))
    if made[0] != made[1]:
        raise ValueError(
            f"{other.path}: its clips are not of the student of {folder.name}, or not sampled"
            " alike; give the score run of the same student on the motion prompts"
        )


def _suite(
    folder: RunFolder,
    judged: Mapping[str, Judged],
    manifest: Mapping[str, Video],
    inputs: dict[str, Any],
) -> list[dict[str, Any]]:
    """Records of all dimensions and of Quality, Semantic and Total."""
    whole = {name: one for name, one in judged.items() if not one.without_video}
    draws = _draws({name: one.videos for name, one in whole.items()}, manifest, inputs["seed"])
    backend = {"name": "vbench", "version": vbench_results.version(folder.path)}
    about = {"backend": backend | {"wording": _wording(folder)}, "constants": HASH}

    def entry(name: str, found: Measurement, of: Iterable[str]) -> dict[str, Any]:
        files = {judged[one].source for one in of if one in judged}
        known = inputs | {"results": _hashes(folder.path, files)}
        return record(METRICS[f"vbench.{name}"], found, {"inputs": known} | about)

    scores = {name: one.score for name, one in whole.items()}
    totals, total_draws = composites(scores), composites(draws)
    made = []
    for name in (*VBENCH["composites"], "total"):
        needed = [n for n, d in DIMENSIONS.items() if name in ("total", d["of"])]
        if gone := lacking(name, whole):
            found = _skipped(f"not run: no whole result of {', '.join(gone)}")
        else:
            seen = {video for one in needed for video in whole[one].videos}
            found = _measured(totals[name], len(seen), total_draws[name])
        made.append(entry(name, found, needed))
    for name in DIMENSIONS:
        made.append(entry(name, _dimension(name, judged.get(name), draws.get(name)), [name]))
    return made


def _dimension(name: str, one: Judged | None, draws: np.ndarray | None) -> Measurement:
    if one is None:
        return _skipped("not run: VBench has written no result")
    if one.without_video:
        return _skipped(
            f"{one.without_video} of its {one.prompts} prompts have no video: sample all prompts"
        )
    extra = {"normalised": normalised(name, one.score), "prompts": one.prompts}
    if name == "temporal_flickering":
        extra["static_filter"] = float(one.filtered)
    return _measured(one.score, len(one.videos), draws, extra)


def _motion(other: RunFolder, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of Dynamic Degree and VisionReward, as far as there are results."""
    manifest = vbench_results.read_manifest(other.path)
    judged = vbench_results.read(other.path, manifest, _wording(other), suite=False)
    answers = vision_reward.read(other.path, manifest)
    values, scores, files = {}, {}, {}
    if (dynamic := judged.get("dynamic_degree")) is not None:
        values["vbench.dynamic"], scores["vbench.dynamic"] = dynamic.videos, dynamic.score
        files["vbench.dynamic"] = {dynamic.source}
    for name in ("score", "instruct") if answers else ():
        metric = f"vision_reward.{name}"
        values[metric] = {video: getattr(answer, name) for video, answer in answers.items()}
        scores[metric] = float(np.mean(list(values[metric].values())))
        files[metric] = {other.path / vision_reward.NAME}
    if not scores:
        raise ValueError(
            f"{other.path}: no results of dynamic_degree and no {vision_reward.NAME}; run"
            f" sh {other.path / 'vbench' / 'evaluate.sh'} motion in VBench's environment first"
        )
    draws = _draws(values, manifest, inputs["seed"])
    versions = {"vbench": vbench_results.version(other.path), "vision_reward": None}
    made = []
    for metric, score in scores.items():
        suite = metric.partition(".")[0]
        known = inputs | {"motion": other.name, "results": _hashes(other.path, files[metric])}
        about = {"inputs": known, "backend": {"name": suite, "version": versions[suite]}}
        found = _measured(score, len(values[metric]), draws[metric])
        made.append(record(METRICS[metric], found, about | {"constants": HASH}))
    return made


def _draws(
    values: Mapping[str, Mapping[str, float]], manifest: Mapping[str, Video], seed: int
) -> dict[str, np.ndarray]:
    return resampled(values, {name: video.prompt for name, video in manifest.items()}, seed)


def _measured(
    score: float, n: int, draws: np.ndarray, extra: dict[str, float] | None = None
) -> Measurement:
    """A score with its percentile interval, times 100."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Measurement(100 * score, n, (100 * float(low), 100 * float(high)), extra=extra or {})


def _skipped(why: str) -> Measurement:
    return Measurement(None, 0, skipped=why)


def _hashes(run: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of results files, by their place in the run."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }
