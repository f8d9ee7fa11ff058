"""VBench itself, the package vbench 0.1.5, on the one dimension that needs no weights.

It wants other versions than ours, so it has an environment of its own, made once and kept in
pytest's cache. Only torch is ours: pip would fetch one for CUDA, of several GB. torchvision is one
whose Python part runs beside any torch; nothing here calls its compiled operators.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from vbench_files import add, score_run, scores

from experiments.generation.mp4 import write_mp4
from experiments.worlds.wan import judge, vbench, vbench_prompts
from experiments.worlds.wan.benchmarks import DIMENSIONS
from experiments.worlds.wan.vbench import read_gray

pytestmark = pytest.mark.slow
PACKAGES = (
    "vbench==0.1.5", "numpy==1.26.4", "opencv-python-headless==4.11.0.86", "decord==0.6.0",
    "torchvision==0.16.2", "pillow", "tqdm", "requests", "urllib3", "idna", "certifi",
    "charset-normalizer",
)  # fmt: skip
SAME = """
import contextlib, json, os, sys
from pathlib import Path
import judge
from vbench import VBench
suite = json.loads(Path(sys.argv[1]).read_text())
videos = [json.loads(line) for line in Path("manifest.jsonl").read_text().splitlines()]
own = VBench("cpu", sys.argv[1], "own")
for dimension in own.build_full_dimension_list():
    with contextlib.redirect_stdout(sys.stderr):
        listed = json.loads(Path(own.build_full_info_json("videos", "x", [dimension])).read_text())
    ours = judge.suite_entries(suite, videos, dimension, "short")
    known = [{k: v for k, v in e.items() if k in listed[0]} for e in ours]
    print(dimension, known == listed, sum(len(e["video_list"]) for e in ours))
"""


@pytest.fixture(scope="module")
def python(request) -> Path:
    """The Python of an environment that has VBench."""
    folder = Path(request.config.cache.mkdir("vbench-0.1.5"))
    made, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists():
        return made
    venv.create(folder, with_pip=True, clear=True)
    command = [made, "-m", "pip", "install", "-q", "--no-deps", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip made no environment for vbench: {done.stderr.strip()[-300:]}")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    last = folder / "lib" / version / "site-packages" / "torch_of_the_tests.pth"
    last.write_text(f"{Path(torch.__file__).parents[1]}\n")  # behind the environment's own
    ready.touch()
    return made


@pytest.fixture(scope="module")
def package(python) -> Path:
    """The folder of the package."""
    (found,) = python.parents[1].glob("lib/*/site-packages/vbench/__init__.py")
    return found.parent


@pytest.fixture(scope="module")
def suite(package) -> list[dict]:
    return json.loads((package / "VBench_full_info.json").read_text())


@pytest.fixture(scope="module")
def run(sweep, suite, tmp_path_factory) -> Path:
    """A score run with two videos of each of VBench's prompts of temporal flickering."""
    asked = [e["prompt_en"] for e in suite if judge.FLICKERING in e["dimension"]]
    runs = tmp_path_factory.mktemp("real") / "runs"
    run = score_run(sweep.cells[0].runs["stage3"], runs, asked, samples=2).path
    rng = np.random.default_rng(0)
    for number, prompt in enumerate(asked):
        for index in (0, 1):
            still = rng.integers(40, 200, (1, 4, 6, 1)).repeat(8, 1).repeat(8, 2)
            flicker = rng.integers(0, 1 + number // 2, (5, 1, 1, 1))
            video = (still + flicker).astype(np.uint8)
            write_mp4(run / "vbench" / "videos" / f"{prompt}-{index}.mp4", video, 16)
    (run / "vbench" / "judge.py").write_text(Path(judge.__file__).read_text())
    script = vbench._SCRIPT.format(dimensions=judge.FLICKERING, wording=judge.EXTENDED)
    (run / "vbench" / "evaluate.sh").write_text(script)
    return run


def test_vbench_judges_our_videos_and_we_read_what_it_wrote(python, run):
    settings = {"PATH": f"{python.parent}:{os.environ['PATH']}", "DEVICE": "cpu"}
    settings |= {"VBENCH_CACHE_DIR": str(run / "cache"), "PYTHONPATH": ""}
    command = ["sh", run / "vbench" / "evaluate.sh"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert add(run) == 0
    found = scores(run)["vbench.temporal_flickering"]
    assert found["backend"] == {"name": "vbench", "version": "0.1.5", "wording": "extended"}
    assert found["n"] == 150 and found["extra"]["prompts"] == 75
    assert found["extra"]["static_filter"] == 0.0
    expected = []
    for path in (run / "vbench" / "videos").iterdir():
        frames = read_gray(path).astype(float)
        expected.append(100 * (1 - np.abs(np.diff(frames, axis=0)).mean() / 255))
    assert np.ptp(expected) > 2
    assert found["value"] == pytest.approx(np.mean(expected), abs=0.3)
    assert found["ci95"][0] < found["value"] < found["ci95"][1]


def test_its_own_list_of_videos_is_ours(python, package, run):
    """For every dimension, with the short prompts, which its command looks for."""
    command = [python, "-c", SAME, package / "VBench_full_info.json"]
    there = {"cwd": run / "vbench", "env": os.environ | {"PYTHONPATH": "."}}
    done = subprocess.run(command, **there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {line[0] for line in lines} == set(DIMENSIONS)
    assert {line[1] for line in lines} == {"True"}
    assert {line[0]: line[2] for line in lines}[judge.FLICKERING] == "150"


def test_which_dimensions_read_the_prompt(package):
    """As a text, or (`color`) for the name of an object: `human_action` takes the file's name."""
    sources = {name: (package / f"{name}.py").read_text() for name in DIMENSIONS}
    reading = {name for name, text in sources.items() if re.search(r"""\[['"]prompt""", text)}
    assert reading == {*judge.TEXT, "color"}
    assert "replace(color_info" in sources["color"]
    assert "video_path.split('/')[-1]" in sources["human_action"]


def test_the_suite_is_the_list_that_is_sampled(suite, tmp_path):
    text = "".join(f"{entry['prompt_en']}\n" for entry in suite)
    assert hashlib.sha256(text.encode()).hexdigest() == vbench_prompts.SHA256
    first = [judge.FLICKERING in entry["dimension"] for entry in suite]
    assert first == [True] * vbench_prompts.FLICKERING + [False] * 871
    for name, end in (("all_dimension.txt", "\n"), ("all_dimension_extended.txt", ", far\n")):
        (tmp_path / name).write_text("".join(f"{e['prompt_en']}{end}" for e in suite))
    many = vbench_prompts.videos_of(tmp_path / vbench_prompts.EXTENDED, 5, 25)
    counts = [many(f"line-{number}") for number in range(1, 947)]
    assert counts == [25] * 75 + [5] * 871 and sum(counts) == 6230
    for name in DIMENSIONS:
        of = {entry["prompt_en"] for entry in suite if name in entry["dimension"]}
        assert len(of) == DIMENSIONS[name]["prompts"]
