"""Finished score runs for VBench, and files as VBench 0.1.5 writes them about such videos."""

import json
from pathlib import Path

import numpy as np

from experiments.__main__ import main
from experiments.metrics import motion, records
from experiments.metrics.registry import measure, selected
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Run
from experiments.worlds.wan import videos
from experiments.worlds.wan.benchmarks import DIMENSIONS
from experiments.worlds.wan.judge import EXTENDED, other_entries, suite_entries
from experiments.worlds.wan.vbench import OFFERS

TOGETHER = (  # dimensions that share a list of prompts, as in VBench_full_info.json
    ("subject_consistency", "dynamic_degree", "motion_smoothness"),
    ("background_consistency", "scene"),
    ("overall_consistency", "aesthetic_quality", "imaging_quality"),
    ("temporal_flickering",), ("object_class",), ("multiple_objects",), ("human_action",),
    ("color",), ("spatial_relationship",), ("appearance_style",), ("temporal_style",),
)  # fmt: skip
SUITE = [
    {"prompt_en": f"a {dimensions[0]} number {number}", "dimension": list(dimensions)}
    for dimensions in TOGETHER
    for number in range(DIMENSIONS[dimensions[0]]["prompts"])
]
for _number in (-1, -2):  # two of VBench's prompts stand in two lists
    SUITE[_number]["prompt_en"] = SUITE[_number - 100]["prompt_en"]
PROMPTS = list(dict.fromkeys(entry["prompt_en"] for entry in SUITE))
ACTIONS = [f"somebody does thing {number}" for number in range(100)]
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
TIME = "2026-11-21-18:22:33"


def score_run(run: Run, runs: Path, prompts: list[str], samples: int = 1) -> RunFolder:
    """A score run that is done, with its manifest and what needs no weights, and its sample run."""
    for each in (run.needs["samples"], run):
        folder = RunFolder.create(each, runs)
    names = [(p, i) for p in prompts for i in range(samples)]
    lines = [
        {
            "file": f"{p}-{i}.mp4",
            "prompt_en": p,
            "prompt_used": f"{p}, at length",
            "sample_index": i,
        }
        for p, i in names
    ]
    (folder.path / "vbench").mkdir()
    text = "\n".join(json.dumps(line) for line in lines) + "\n"
    (folder.path / "vbench" / "manifest.jsonl").write_text(text)
    rule = motion.DynamicRule.of(81, 480, 832, 16)
    speeds = np.random.default_rng(0).gamma(2.0, 6.0, (len(lines), 40))
    found = measure(videos.Videos(speeds, rule, 0), selected("all", OFFERS))
    inputs = {"samples": run.needs["samples"].name, "samples_fingerprint": "f" * 16, "seed": 0}
    about = {"inputs": inputs, "backend": {"name": "videos"}}
    records.write(folder.path, found, [f"{n:06d}" for n in range(len(lines))], {}, about)
    for each in (run.needs["samples"], run):
        RunFolder(runs / each.name).mark_done()
    return folder


def values_of(dimension: str, names: list[str], mean: float) -> list[float | bool]:
    """A number per video, on the scale that VBench has for one, with this mean (but for truths)."""
    rng = np.random.default_rng(len(dimension))
    if dimension in ("dynamic_degree", "human_action"):
        return [bool(truth) for truth in rng.permutation(len(names)) < round(mean * len(names))]
    spread = rng.normal(0, 0.02, len(names))
    scale = 100 if dimension == "imaging_quality" else 1
    return [float(v) for v in scale * (mean + spread - spread.mean())]


def judge(
    run: Path,
    dimension: str,
    mean: float,
    others: bool = False,
    folder: str = "videos",
    wording: str = EXTENDED,
    static: dict[str, list[str]] | None = None,
) -> Path:
    """Write what VBench does, called by judge.py; the results file."""
    manifest = [json.loads(x) for x in (run / "vbench/manifest.jsonl").read_text().splitlines()]
    info = suite_entries(SUITE, manifest, dimension, wording, static)
    if others:
        info = other_entries(manifest, dimension)
    listed = [Path(path).name for entry in info for path in entry["video_list"]]
    paths = [f"{folder}/{name}" for name in listed]
    if dimension == "color":
        paths = paths[3:]  # where it finds no object
    values = values_of(dimension, paths, mean)
    found = [{"video_path": p, "video_results": v} for p, v in zip(paths, values, strict=True)]
    score = float(np.mean(values)) if values else float("nan")
    if dimension == "imaging_quality":
        score /= 100
    to = run / "vbench" / "results" / dimension
    to.mkdir(parents=True, exist_ok=True)
    path = to / f"results_{TIME}_eval_results.json"
    path.write_text(json.dumps({dimension: [score, found]}, indent=4))
    (to / f"results_{TIME}_full_info.json").write_text(json.dumps(info, indent=4))
    return path


def scores(run: Path) -> dict[str, dict]:
    """A score run's records by metric."""
    lines = (run / "scores.jsonl").read_text().splitlines()
    return {record["metric"]: record for record in map(json.loads, lines)}


def add(run: Path, *words: object) -> int:
    """`python -m experiments results`; its exit code."""
    return main(["results", str(run), *map(str, words)])
