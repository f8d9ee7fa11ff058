"""Real processes: one is killed by SIGKILL, others continue, and the set is bit-identical."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from videos import moving, openvid_folder

from datamodules.shards.reader import open_shards
from experiments.__main__ import main
from experiments.launch.shard_workers import join
from experiments.runs.folder import RunFolder

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
COUNT = 12


def arguments(runs, source, wan):
    settings = {
        "needs.videos": f"{{folder: {source}}}",
        "needs.wan": f"{{folder: {wan}}}",
        "clip_shape": "[3,16,2,4]",
        "count": COUNT - 2,
        "curate.heldout_percent": 0,
        "curate.limits": "{aesthetic: 4.5}",
        "curate.video": "{aspect: [1.6, 2.1]}",
        "curate.vae_dtype": "float32",
        "curate.text_dtype": "float32",
        "curate.items_per_shard": 2,
    }
    options = [f"{key}={value}" for key, value in settings.items()]
    return ["curate", "openvid_clips", "--runs", f"{runs}", *options]


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def digests(runs):
    (run,) = runs.glob("openvid_clips-*")
    files = (run / "shards").iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_killed_run_is_finished_by_others(tmp_path, wan_folder):
    film = moving(14, fps=24, width=104)
    short = moving(5, width=104)
    films = {f"film{i}_0.mp4": short if i % 6 == 0 else film for i in range(COUNT)}
    source = openvid_folder(tmp_path / "in", films)
    there, plain = (arguments(tmp_path / name, source, wan_folder) for name in ("there", "plain"))
    killed = start("experiments", *there, "launch.workers=1")
    give_up = time.monotonic() + 200
    while len(list(tmp_path.glob("there/*/shards/*.tar"))) < 2:
        assert time.monotonic() < give_up and killed.poll() is None, killed.communicate()[0]
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (run,) = tmp_path.glob("there/openvid_clips-*")
    assert 2 <= len(list(run.glob("shards/*.tar"))) < COUNT // 2, "it was killed too late"
    helper = start("experiments", "join", f"{run}")
    said, _ = helper.communicate(timeout=200)
    assert helper.returncode == 0 and "going on after" in said, said
    assert not (run / "shards" / "manifest.json").exists(), "a helper completes nothing"
    assert main(there) == main(plain) == 0
    assert f"going on after {COUNT - 2} of {COUNT - 2}" in (run / "log.txt").read_text()
    assert digests(tmp_path / "there") == digests(tmp_path / "plain")
    shards = open_shards(run / "shards")
    shards.verify()
    assert len(shards) == COUNT - 2 and shards.manifest["refused"] == {"too short": 2}
    assert RunFolder(run).done and join(RunFolder(run)) is None
