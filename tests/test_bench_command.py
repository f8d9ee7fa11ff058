"""``bench`` as a command: what was measured is kept, a row has a process, mistakes are answered."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_bench import SMALL

from experiments.__main__ import main
from experiments.bench import device, rollout
from experiments.bench.random_models import Subject

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "fault", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()]
)
def test_what_was_measured_outlives_what_fails(tmp_path, monkeypatch, fault):
    """Rows are written as they come; an error is a row, and the next ones are measured."""
    kept = rollout.FastPast

    def failing(*args, commit, **how):
        if commit == "separate":
            raise fault
        return kept(*args, commit=commit, **how)

    monkeypatch.setattr(rollout, "FastPast", failing)
    out = tmp_path / "rollout.json"
    words = ["--device", "cpu", "--warmup", "0", "--repeats", "1", "--few-steps", "1"]
    with contextlib.suppress(KeyboardInterrupt):
        main(["bench", "rollout", *SMALL, *words, "--one-process", "--out", str(out)])
    rows = {row["name"].removeprefix("rollout/1/"): row
            for row in json.loads(out.read_text())["rows"]}  # fmt: skip
    assert rows["training"]["median_s"] > 0
    if isinstance(fault, KeyboardInterrupt):
        assert rows["separate"]["not_run"] == rows["fused"]["not_run"]
        return
    assert rows["separate"]["error"] == "OutOfMemoryError: CUDA out of memory"
    assert rows["fused"]["median_s"] > 0


def test_nothing_but_errors_is_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Subject, "vae", lambda *_: 1 / 0)
    out = tmp_path / "vae.json"
    words = ["--device", "cpu", "--one-process", "--out", str(out)]
    assert main(["bench", "vae", *SMALL, *words]) == 1
    assert "nothing could be measured" in capsys.readouterr().err
    assert [row["error"] for row in json.loads(out.read_text())["rows"]] == [
        "ZeroDivisionError: division by zero"
    ] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout", "network.num_layer=1"], "did you mean 'network.num_layers'"),
        (["rollout", "--scale", "tinny"], "did you mean 'tiny'"),
        (["rollout", "--scale", "switching"], "has no section 'bench'"),
        (["rollout", "--repeats", "0"], "--repeats and --few-steps at least 1"),
        (["rollout", "--minutes", "0"], "--minutes: 0.0 must be above 0"),
        (["rollout", "--minutes", "1", "--one-process"], "cannot be ended"),
        (
            ["all", "--rows", "rollout/2,train/stage2_causal_xd"],
            "no 'train/stage2_causal_xd' on this device; did you mean 'train/stage2_causal_cd'",
        ),
        (["rollout", "--few-steps", "0"], "--repeats and --few-steps at least 1"),
        (["rollout", "shift=${nope}"], "tiny.yaml: shift: '${nope}': Interpolation key 'nope'"),
        (["rollout", "network.num_layers=0"], "network.num_layers: 0 must be at least 1"),
        pytest.param(
            ["rollout", "--device", "cuda"],
            "torch sees no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_mistakes_are_answered(capsys, words, message):
    assert main(["bench", *words]) == 1
    assert message in capsys.readouterr().err


def test_the_next_call_goes_on(tmp_path, capsys, monkeypatch):
    """A row in a process of its own: the rehearsal of `test_gpu_check.py`."""
    out = tmp_path / "vae.json"
    words = ["--device", "cpu", "--warmup", "0", "--repeats", "1", "--one-process"]
    command = ["bench", "vae", *SMALL, *words, "--out", str(out)]
    assert main([*command, "--rows", "vae/decode"]) == 0
    (decoded,) = json.loads(out.read_text())["rows"]
    assert main([*command, "--rows", "vae/decode,vae/encode"]) == 0
    found = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert found["vae/decode"] == decoded and found["vae/encode"]["median_s"] > 0
    monkeypatch.setattr(device, "measure_peak", None)  # nor is the device measured
    assert main([*command, "--scale", "wan1.3b"]) == 1
    assert "another scale (tiny; now wan1.3b)" in capsys.readouterr().err


def test_help_is_light():
    code = (
        "import sys\nfrom experiments.__main__ import main\n"
        "try: main(['bench', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'lightning', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
