"""Finished score runs for VBench, and files as VBench 0.1.5 writes them about such videos."""

import json
from pathlib import Path

import numpy as np

from experiments.folder import RunFolder
from experiments.metrics import motion, records, videos
from experiments.metrics.benchmarks import DIMENSIONS
from experiments.metrics.registry import measure, selected
from experiments.recipe import Run
from experiments.scoring.vbench import OFFERS

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
    run: Path, dimension: str, mean: float, mode: str = "vbench_standard", folder: str = "videos"
) -> Path:
    """Write what `vbench evaluate` does; the results file."""
    manifest = [json.loads(x) for x in (run / "vbench/manifest.jsonl").read_text().splitlines()]
    suite = SUITE
    if mode == "custom_input":
        suite = [{"prompt_en": line["prompt_en"], "dimension": [dimension]} for line in manifest]
    of = {}
    for line in [line for line in manifest if line["sample_index"] < 5]:
        of.setdefault(line["prompt_en"], []).append(f"{folder}/{line['file']}")
    info = [
        e | {"video_list": of.get(e["prompt_en"], [])} for e in suite if dimension in e["dimension"]
    ]
    paths = [path for entry in info for path in entry["video_list"]]
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
