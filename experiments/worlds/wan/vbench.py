"""Videos laid out for VBench, with the metrics that need no weights.

Needs: `samples` (a sample run that saved mp4) and `benchmark` (a folder with VBench's prompts,
`all_dimension.txt`, one a line). Results, next to the scores::

    vbench/videos/<prompt>-<i>.mp4   links; the prompt in full, as VBench's file names have it
                                     (`vbench_prompts.video_name`)
    vbench/manifest.jsonl            per video: prompt as VBench has it, as it was used, key, size
    vbench/evaluate.sh, judge.py     call VBench, in an environment of its own
    vbench/results/                  what they write; `python -m experiments results` reads it

Published code cuts file names at 100 characters: 72 of VBench's prompts are longer, so they are not
found, and 19 videos overwrite others.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from datamodules.atomic import write_text
from datamodules.shards.reader import ShardReader, open_shards
from experiments.generation.mp4 import clip_file
from experiments.metrics import motion, records
from experiments.metrics.registry import measure, selected
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.wan import judge, videos
from experiments.worlds.wan.benchmarks import DIMENSIONS
from experiments.worlds.wan.vbench_prompts import prompt_of, read_prompts, video_name

log = logging.getLogger(__name__)
OFFERS = ("videos",)
GIVEN = {"samples", "benchmark", "folder", "seed"}
_SCRIPT = """#!/bin/sh
#   sh evaluate.sh           VBench's dimensions, on its own prompts
#   sh evaluate.sh motion    its dynamic degree alone, on any others (the paper: 100 of actions)
# DEVICE=cpu before it does without a GPU, where the dimension can.
# What has results is not judged again. vbench 0.1.5 wants Python 3.11, torch 2.5.1, setuptools
# 69.5.1, numpy 1.26.4 and, for four dimensions, detectron2: an environment of its own, active here.
# Where temporal_flickering has more than five videos of a prompt, VBench's static filter chooses.
cd "$(dirname "$0")" || exit 1
wanted="{dimensions}"
others=
if [ "$1" = motion ]; then wanted=dynamic_degree others=--others; fi
mkdir -p results
python -c 'from importlib.metadata import version; print(version("vbench"))' \\
  > results/version.txt || exit 1
missing=0
for dimension in $wanted; do
  to=results/$dimension
  ls $to/*_eval_results.json > /dev/null 2>&1 && continue
  python judge.py $dimension --wording {wording} --device "${{DEVICE:-cuda}}" --output $to $others
  ls $to/*_eval_results.json > /dev/null 2>&1 || {{ echo "no results: $dimension"; missing=1; }}
done
exit $missing
"""


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is read."""
    settings = bind(lay_out, recipe.get("score", {}), GIVEN, "score")
    selected(settings["metrics"], OFFERS)
    if settings["wording"] not in judge.WORDINGS:
        raise ValueError(
            f"scoring.wording: {settings['wording']!r} is none of {', '.join(judge.WORDINGS)}"
        )
    if "samples" not in recipe["needs"]:
        raise ValueError("needs.samples is missing: VBench judges a sample run that saved mp4")


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Lay out ``needs.samples`` for VBench, and measure what needs no weights."""
    lay_out(
        samples=folder.need("samples"),
        benchmark=folder.need("benchmark"),
        folder=folder,
        seed=recipe["seed"],
        **bind(lay_out, recipe["score"], GIVEN, "score"),
    )


def lay_out(
    samples: Path,
    benchmark: Path,
    folder: RunFolder,
    seed: int,
    *,
    metrics: str | list[str],
    wording: str,
) -> None:
    """Link, describe and measure the videos of a sample run.

    Args:
        samples, benchmark: folders.
        metrics: ids, or `all`.
        wording: the prompts that VBench compares videos with: ``extended``, those sampled from, as
            the authors do (issues 18 and 48 of thu-ml/Causal-Forcing), or ``short``, its own.

    Raises:
        FileNotFoundError: no prompts, or a sample run without mp4 files.
        ValueError: a video whose prompt is none of VBench's; a damaged video.
    """
    shards = open_shards(samples / "shards")
    prompts = read_prompts(benchmark)
    to = folder.path / "vbench"
    (to / "videos").mkdir(parents=True, exist_ok=True)
    lines, magnitudes = [], []
    for number, entry in enumerate(_entries(shards, samples, prompts)):
        clip = read_gray(entry.source)
        rule = motion.DynamicRule.of(*clip.shape[:3], shards.manifest["fps"])
        magnitudes.append(motion.fastest(clip[None, :: rule.interval])[0])
        _link(entry.source, to / "videos" / entry.name)
        size = {"frames": len(clip), "height": clip.shape[1], "width": clip.shape[2]}
        lines.append(json.dumps({**entry.about, **size, "fps": shards.manifest["fps"]}))
        folder.progress(number + 1, len(shards), "videos")
    write_text(to / "manifest.jsonl", "\n".join(lines) + "\n")
    script = _SCRIPT.format(dimensions=" ".join(DIMENSIONS), wording=wording)
    write_text(to / "evaluate.sh", script)
    write_text(to / "judge.py", Path(judge.__file__).read_text(encoding="utf-8"))
    view = videos.Videos(np.stack(magnitudes), rule, seed)
    found = measure(view, selected(metrics, OFFERS))
    about = {
        "inputs": {
            "samples": samples.name,
            "samples_fingerprint": shards.fingerprint,
            "seed": seed,
        },
        "backend": {"name": "videos"},
    }
    records.write(folder.path, found, shards.keys, {}, about)
    log.info("%d videos for VBench: sh %s", len(lines), to / "evaluate.sh")


@dataclass(frozen=True)
class _Entry:
    """A video: its path, VBench's name for it, and its metadata."""

    source: Path
    name: str
    about: dict[str, Any]


def _entries(shards: ShardReader, samples: Path, prompts: list[str]) -> Iterator[_Entry]:
    taken: Counter[str] = Counter()
    for number in range(len(shards)):
        sample = shards.read(number, [])
        prompt = prompt_of(sample["info"], prompts)
        name = video_name(prompt, sample["key"], taken[prompt])
        about = {
            "file": name,
            "prompt_en": prompt,
            "prompt_used": sample["caption"],
            "key": sample["key"],
            "sample_index": taken[prompt],
        }
        taken[prompt] += 1
        yield _Entry(clip_file(samples, sample["key"]), name, about)


def read_gray(path: Path) -> np.ndarray:
    """Brightness uint8 [T, H, W, 1] of a video.

    Raises:
        FileNotFoundError, ValueError: it is missing, or does not decode.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video; sample with sampling.save=mp4")
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    except av.FFmpegError as error:
        raise ValueError(f"{path}: does not decode ({error}): sample again") from error
    return np.stack(frames)[..., None]


def _link(source: Path, target: Path) -> None:
    """A hard link, or a symbolic one where the file systems differ."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source)
