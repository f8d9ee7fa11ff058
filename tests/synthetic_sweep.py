"""A synthetic finished (or partly finished) sweep on disk: scores, curves, clips, costs."""

import json
import zlib
from pathlib import Path

import numpy as np

from datamodules.shards.writer import ShardWriter
from experiments.runs.recipe import Run
from experiments.runs.yaml_reader import read_table
from sweeps.plan.graph import Cell, Sweep
from sweeps.report.frame import Frame
from sweeps.report.intervals import FrameNumbers
from sweeps.report.layout import TABLES, load_layout
from sweeps.report.table import our_table

PAPER_TO_OURS = {
    "total": "world.total", "quality": "world.quality", "semantic": "world.semantic",
    "dynamic": "world.dynamic_digit", "vision": "world.reward", "instruct": "world.instruct",
}  # fmt: skip
CLIPS, FRAMES, SIDE = 64, 8, 32
PAPER = read_table(TABLES / "ablation" / "paper.yaml")
SECONDS = {"self_forcing_ode": 120.0, "causal_ode": 90.0, "causal_dmd": 80.0, "causal_cd": 70.0}
PAIRS_SECONDS = {"self_forcing_ode": 60.0, "causal_ode": 210.0}


def make_sweep(
    runs: Path, seeds=(0,), skip=(), noise=0.0, per_clip=True, clips=True, floor=None,
    collapses=True,
) -> Sweep:  # fmt: skip
    """A sweep whose scores are the paper's numbers, plus noise per seed.

    `floor` is the Total of worthless clips; with it the cells that preconditions ask are made too.
    `collapses`: AR diffusion does in one step before Stage 3, else it keeps the paper's numbers.

    `skip` holds (init, steps) whose Stage-3 score run is missing.
    """
    paper, rng = PAPER, np.random.default_rng(0)
    data = _run(runs, "data", "curate", {}, device_s=5.0)
    if clips:
        _shards(runs / data.name / "shards", 0.0)
    probe = _run(runs, "probe", "fit", {})
    cells = []
    for seed in seeds:
        for steps, rows in paper["blocks"].items():
            for init, printed in rows.items():
                stage2 = _stage2(runs, init, seed)
                final = _run(runs, f"stage3_{init}_{steps}_{seed}", "fit", {"student": stage2})
                scored = {}
                for stage, student in ((3, final), (2, stage2)):
                    name = f"{stage}_{init}_{steps}_{seed}"
                    sample = _run(runs, f"sample{name}", "sample", {"student": student})
                    done = stage == 2 or (init, steps) not in skip
                    needs = {"samples": sample, "data": data, "probe": probe}
                    scored[f"stage{stage}"] = _run(runs, f"score{name}", "score", needs, done)
                    shift = rng.normal(0, noise) - (4.0 if stage == 2 else 0.0)
                    values = dict(zip(paper["order"], printed, strict=True))
                    scores = {m: values[c] + shift for c, m in PAPER_TO_OURS.items()}
                    if floor is not None and collapses and name.startswith("2_ar_diffusion_1_"):
                        scores |= {"world.total": 20.0 + shift, "world.quality": 2.0 + shift}
                    scores["world.distance"] = (100 - scores["world.total"]) / 3
                    _scores(runs / scored[f"stage{stage}"].name, scores, rng, per_clip)
                    if clips:
                        _shards(runs / sample.name / "shards", 90 - scores["world.total"])
                cells.append(Cell({"init": init, "few_steps": steps, "seed": seed}, scored))
    given = {"base": 92.0, "real_score": 94.0}
    given |= {f"floor_{kind}": floor for kind in ("noise", "shuffled", "blurred", "captions")}
    for seed in seeds:
        for name, of, total in (
            ("ceiling", "real", 95.0),  # of all seeds
            ("ar_teacher", f"teacher_{seed}", 88.0 + seed),
            *((name, name, total) for name, total in given.items() if floor is not None),
        ):
            scored = _run(runs, f"score_{of}", "score", {"data": data})
            values = dict.fromkeys(PAPER_TO_OURS.values(), total)
            if name.startswith("floor"):
                values = dict.fromkeys(values, -100.0) | {"world.total": total}
            values["world.distance"] = (100 - total) / 3
            _scores(runs / scored.name, values, rng, per_clip)
            cells.append(Cell({"init": name, "seed": seed}, {"stage3": scored}))
    return Sweep("synthetic", "tiny", list(seeds), cells, "A made-up sweep", "ablation")


def _run(runs: Path, name: str, verb: str, needs: dict, done=True, device_s=1.0, steps=0) -> Run:
    name = f"{name}-{zlib.crc32(name.encode()):08x}"
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    record = {"device_s": device_s, "device": "made-up CPU", "versions": {"torch": "2.13.0"}}
    (folder / "record.json").write_text(json.dumps(record))
    if done:
        (folder / "done.json").write_text("{}")
    recipe = {"recipe": name, "verb": verb, "seed": 0, "fit": {"steps": steps}}
    recipe["needs"] = {role: need.name for role, need in needs.items()}
    return Run(name, recipe, needs, "tiny")


def _stage2(runs: Path, init: str, seed: int) -> Run:
    if init == "ar_diffusion":
        return _run(runs, f"stage1_{seed}", "fit", {}, steps=0)
    needs = {"student": _run(runs, f"stage1_{seed}", "fit", {}, steps=900)}
    if init in PAIRS_SECONDS:
        needs["pairs"] = _run(runs, f"pairs_{init}_{seed}", "pairs", {}, True, PAIRS_SECONDS[init])
        shard = runs / needs["pairs"].name / "shards" / "000000.tar"
        shard.parent.mkdir(exist_ok=True)
        shard.write_bytes(bytes(3 << 20 if init == "causal_ode" else 2 << 20))
    return _run(runs, f"stage2_{init}_{seed}", "fit", needs, True, SECONDS[init], 1500)


def _scores(folder: Path, scores: dict[str, float], rng, per_clip: bool) -> None:
    lines = []
    for metric, value in scores.items():
        record = {"metric": metric, "value": value, "unit": "", "n": CLIPS, "kind": "proxy"}
        record |= {"calibration": "1234567890abcdef"}
        record |= {"ci95": [value - 0.5, value + 0.7], "higher_is_better": "distance" not in metric}
        lines.append(json.dumps(record))
    (folder / "scores.jsonl").write_text("\n".join(lines) + "\n")
    decay = (96 - scores["world.total"]) / 100
    index = np.arange(FRAMES)
    curves = {
        "world.fd_by_frame": list(decay * (1 + index / 2)),
        "world.identity_by_frame": list(1 - decay * index / FRAMES),
        "world.sharpness_by_frame": list(1 - decay * index / 2 / FRAMES),
    }
    (folder / "curves.json").write_text(json.dumps(curves))
    if per_clip:
        shared = np.linspace(-1, 1, CLIPS)  # every cell sees the same prompts
        spread = rng.normal(0, 0.05, (len(scores), CLIPS))
        own = spread - spread.mean(1, keepdims=True)
        arrays = {m: v + shared + own[i] for i, (m, v) in enumerate(scores.items())}
        keys = np.array([f"{number:06d}" for number in range(CLIPS)])
        np.savez(folder / "per_clip.npz", key=keys, **arrays)


def _shards(folder: Path, badness: float) -> None:
    rng = np.random.default_rng(1)
    with ShardWriter(folder, "clips", about={}) as writer:
        for number in range(4):
            video = np.zeros((FRAMES, SIDE, SIDE, 1), np.uint8)
            for t in range(FRAMES):
                left = 2 + (number + 2) * t % 18
                video[t, 8 + number : 20 + number, left : left + 8] = 230
            noise = rng.normal(0, 6 * badness, video.shape)
            video = np.clip(video + noise, 0, 255).astype(np.uint8)
            caption = f"a {number} moving right, slowly"
            latents = np.arange(FRAMES, dtype=np.float16).reshape(FRAMES, 1, 1, 1)
            arrays = {"video": video, "latents": latents}
            arrays["text"] = np.zeros((1, 1), np.float16)
            writer.write(f"{number:06d}", arrays, {"caption": caption})


def numbers_of(sweep: Sweep, runs: Path) -> FrameNumbers:
    """What has been run of a sweep."""
    return FrameNumbers(Frame(sweep, runs, load_layout(sweep)))


def table_of(sweep: Sweep, runs: Path):
    """The table of what has been run of a sweep."""
    return our_table(numbers_of(sweep, runs))


def row_of(shown, steps: int, init: str):
    """One row of a table that was made of such a sweep."""
    block = next(b for b in shown.blocks if b.title == f"{steps}-step")
    return next(row for row in block.rows if row.id == init)
