"""Reads and checks VBench 0.1.5's results for the videos of a score run; runs none of its code.

For each call of judge.py or ``vbench evaluate`` there are, anywhere below vbench/results::

    <name>_eval_results.json   {"<dimension>": [<score>, [{"video_path": .., "video_results": ..}]]}
    <name>_full_info.json      [{"prompt_en": .., "dimension": [..], "video_list": [..]}]

VBench's command always exits with 0, missing videos are only printed, and no videos at all give
`[NaN, []]`. So everything is checked here against the run's own manifest.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.curation.text_lists import read_lines, read_text
from experiments.worlds.wan.benchmarks import DIMENSIONS, VBENCH
from experiments.worlds.wan.judge import ASKED, EXTENDED, TEXT

RESULTS, INFO = "_eval_results.json", "_full_info.json"
FOLDER = "videos"  # of the score run; VBench's static filter, called by hand, copies to another
CLOSE = 1e-6  # of a score to the mean of its videos, which differ by rounding alone


@dataclass(frozen=True)
class Video:
    """The needed fields of a line of manifest.jsonl."""

    prompt: str
    sample_index: int
    prompt_used: str


@dataclass(frozen=True)
class Judged:
    """One dimension: VBench's score, and its scores per video (by file name).

    ``without_video`` counts prompts of the dimension without a video; ``filtered`` says that
    VBench's static filter chose the videos.
    """

    score: float
    videos: Mapping[str, float]
    source: Path
    prompts: int
    without_video: int
    filtered: bool


def read_manifest(run: Path) -> dict[str, Video]:
    """The videos that a score run laid out, by file name.

    Raises:
        ValueError: there is no manifest, or it is damaged.
    """
    path = run / "vbench" / "manifest.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; only a score run with needs.benchmark has one")
    try:
        lines = [json.loads(line) for _, line in read_lines(path)]
        return {
            line["file"]: Video(line["prompt_en"], line["sample_index"], line["prompt_used"])
            for line in lines
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); delete the run and score again") from error


def version(run: Path) -> str | None:
    """VBench's version as stored by evaluate.sh; None when VBench was called differently."""
    path = run / "vbench" / "results" / "version.txt"
    return read_text(path).strip() or None if path.is_file() else None


def read(
    run: Path, manifest: Mapping[str, Video], wording: str, suite: bool = True
) -> dict[str, Judged]:
    """All dimensions with results, in VBench's order.

    Args:
        wording: ``extended`` or ``short``: the prompts that the run is to be judged by.
        suite: on VBench's own prompts; else on any others.

    Raises:
        ValueError: results that are damaged, or that are not of these videos; with the cure.
    """
    found: dict[str, Judged] = {}
    for path in sorted((run / "vbench" / "results").rglob(f"*{RESULTS}")):
        results = _json(path, dict)
        info = _json(path.with_name(path.name.removesuffix(RESULTS) + INFO), list)
        for dimension, result in results.items():
            where = f"{path}: {dimension}"
            if dimension not in DIMENSIONS:
                raise ValueError(f"{where}: VBench has no such dimension; {_AGAIN}")
            if dimension in found:
                raise ValueError(
                    f"{where}: judged twice, also in {found[dimension].source};"
                    " delete the older of the two"
                )
            prompts = _prompts(info, dimension, where)
            if suite and len(prompts) != DIMENSIONS[dimension]["prompts"]:
                raise ValueError(
                    f"{where}: judged on {len(prompts)} prompts, VBench has"
                    f" {DIMENSIONS[dimension]['prompts']}: not its standard mode; {_AGAIN}"
                )
            if suite and dimension in TEXT:
                _check_wording(info, dimension, manifest, wording, where)
            static = any(e.get("static_filter") for e in info)
            judged = _judged(dimension, result, prompts, manifest, path, suite, static)
            found[dimension] = judged
    return {name: found[name] for name in DIMENSIONS if name in found}


_AGAIN = "delete this file and run evaluate.sh again"


def _json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(read_text(path))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; VBench writes it beside its results: keep both"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: not whole ({error}); {_AGAIN}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: not as VBench 0.1.5 writes it; {_AGAIN}")
    return value


def _prompts(info: list[Any], dimension: str, where: str) -> set[str]:
    try:
        of = [entry for entry in info if dimension in entry["dimension"]]
        return {entry.get(ASKED, entry["prompt_en"]) for entry in of}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{where}: its {INFO} lacks {error}; {_AGAIN}") from None


def _check_wording(
    info: list[Any], dimension: str, manifest: Mapping[str, Video], wording: str, where: str
) -> None:
    """Refuse videos that were compared with prompts in another wording than the run's."""
    for entry in info:
        names = [Path(path).name for path in entry.get("video_list", [])]
        for name in names if dimension in entry["dimension"] else ():
            video = manifest.get(name)
            if video is None:
                continue  # refused with the results
            wanted = video.prompt_used if wording == EXTENDED else video.prompt
            if entry["prompt_en"] != wanted:
                raise ValueError(
                    f"{where}: {name!r} was judged by {entry['prompt_en'][:60]!r}, which is not its"
                    f" {wording} prompt (scoring.wording of this run): {_AGAIN}"
                )


def _judged(
    dimension: str,
    result: Any,
    prompts: set[str],
    manifest: Mapping[str, Video],
    path: Path,
    suite: bool,
    static: bool,
) -> Judged:
    where = f"{path}: {dimension}"
    score, listed = _parts(result, where)
    names = [Path(entry["video_path"]).name for entry in listed]
    if unknown := sorted(set(names) - set(manifest)):
        raise ValueError(
            f"{where}: {unknown[0]!r} ({len(unknown)} in all) is none of this run's videos;"
            f" judge vbench/{FOLDER} of this run: {_AGAIN}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: a video is there twice; {_AGAIN}")
    scale = DIMENSIONS[dimension].get("per_video", 1.0)
    videos = {
        name: scale * float(entry["video_results"])
        for name, entry in zip(names, listed, strict=True)
    }
    filtered = static or any(Path(entry["video_path"]).parent.name != FOLDER for entry in listed)
    wanted = {
        name
        for name, video in manifest.items()
        if not suite
        or (video.prompt in prompts and (static or video.sample_index < VBENCH["samples"]))
    }
    missed = sorted(wanted - set(names))
    if missed and not filtered and "drops" not in DIMENSIONS[dimension]:
        raise ValueError(
            f"{where}: {len(names)} videos were judged, the manifest has {len(wanted)} for it, also"
            f" {missed[0]!r}; {_AGAIN}"
        )
    if extra := sorted(set(names) - wanted):
        raise ValueError(
            f"{where}: {extra[0]!r} ({len(extra)} in all) is of none of its prompts; {_AGAIN}"
        )
    mean = sum(videos.values()) / len(videos)
    if not math.isclose(score, mean, abs_tol=CLOSE):
        raise ValueError(
            f"{where}: {score:.6f} is not the mean of its videos, {mean:.6f}; VBench averages"
            f" otherwise on several GPUs: take one (--ngpus 1); {_AGAIN}"
        )
    without = prompts - {video.prompt for video in manifest.values()} if suite else set()
    return Judged(score, videos, path, len(prompts), len(without), filtered)


def _parts(result: Any, where: str) -> tuple[float, list[dict[str, Any]]]:
    """The score and the list of videos, if both are numbers throughout."""
    shape = isinstance(result, list) and len(result) == 2 and isinstance(result[1], list)
    if not shape or not all(
        isinstance(entry, dict) and isinstance(entry.get("video_path"), str) for entry in result[1]
    ):
        raise ValueError(f"{where}: not [score, videos] as VBench 0.1.5 writes it; {_AGAIN}")
    if not result[1]:
        raise ValueError(
            f"{where}: no video was judged; VBench looks for <prompt>-0.mp4 and so on, as"
            f" vbench/{FOLDER} has them: {_AGAIN}"
        )
    for number in (result[0], *(entry.get("video_results") for entry in result[1])):
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"{where}: {number} is no score; {_AGAIN}")
    return float(result[0]), result[1]
