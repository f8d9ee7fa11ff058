"""Signals around training: before the first step, after the last one, a second one, Lightning's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from lightning.pytorch.callbacks import Callback
from toy_training import Batches, Do, fit

from callbacks import checkpointing
from callbacks.checkpointing import Checkpoint, stopped
from datamodules.signals import APART_S, STOP, insists

ROOT = Path(__file__).parent.parent


class SignalsIn(Callback):
    """Sends SIGTERM in one of Lightning's hooks."""

    def __init__(self, hook):
        setattr(self, hook, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
def test_asked_before_the_first_step_it_takes_none(tmp_path, hook):
    checkpoint, before = Checkpoint(tmp_path / "last.ckpt"), signal.getsignal(signal.SIGTERM)
    module, trainer = fit(tmp_path, [checkpoint, SignalsIn(hook)])
    assert checkpoint.interrupted and not module.losses and not checkpoint.path.exists()
    assert stopped(trainer), "so that nobody puts networks together for nothing"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
def test_asked_after_the_last_step_it_ends(tmp_path, hook):
    """What is handed on is put together then, by all ranks."""
    checkpoint, before = Checkpoint(tmp_path / "last.ckpt"), signal.getsignal(signal.SIGTERM)
    module, trainer = fit(tmp_path, [checkpoint, SignalsIn(hook)])
    assert len(module.losses) == 10 and not stopped(trainer)
    assert signal.getsignal(signal.SIGTERM) is before


def test_lightnings_own_answer_to_a_signal_is_off(tmp_path):
    """It is a broadcast, while the other ranks do something else; here between the callbacks."""

    class Asks(Batches):
        def train_dataloader(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().train_dataloader()

    checkpoint = Checkpoint(tmp_path / "last.ckpt")
    module, trainer = fit(tmp_path, [checkpoint], data=Asks(10))
    assert checkpoint.interrupted and not module.losses and not trainer.received_sigterm


@pytest.mark.parametrize("number", STOP)
def test_every_signal_to_stop_saves_after_the_step(tmp_path, number):
    """SIGHUP, which a closed terminal sends, among them."""
    before = signal.getsignal(number)
    checkpoint = Checkpoint(tmp_path / "last.ckpt")
    _, trainer = fit(tmp_path, [checkpoint, Do(5, lambda: os.kill(os.getpid(), number))])
    assert checkpoint.interrupted and trainer.global_step == 6 == checkpoint.saved_step
    assert signal.getsignal(number) is before


def test_nohup_is_respected(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        checkpoint = Checkpoint(tmp_path / "last.ckpt")
        fit(tmp_path, [checkpoint, Do(5, lambda: os.kill(os.getpid(), signal.SIGHUP))])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not checkpoint.interrupted


@pytest.mark.parametrize(
    ("first", "second", "apart_s", "ends"),
    [
        (signal.SIGINT, signal.SIGINT, 0.0, True),
        (signal.SIGTERM, signal.SIGINT, APART_S, True),
        (signal.SIGTERM, signal.SIGINT, 0.0, False),  # a warning of Slurm's arrives as the latter
        (signal.SIGTERM, signal.SIGTERM, APART_S, True),
        (signal.SIGTERM, signal.SIGTERM, 0.0, False),  # a cluster sends several at once
        (signal.SIGHUP, signal.SIGTERM, 0.0, False),
    ],
)
def test_a_second_signal_ends_a_step_that_does_not_end(
    tmp_path, monkeypatch, first, second, apart_s, ends
):
    reached, clock = [], time.monotonic
    later = [0.0]
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: clock() + later[0])

    def stuck():
        os.kill(os.getpid(), first)
        later[0] = apart_s
        os.kill(os.getpid(), second)
        reached.append(True)

    before = {number: signal.getsignal(number) for number in STOP}
    handled = {number: signal.signal(number, signal.default_int_handler) for number in STOP}
    checkpoint = Checkpoint(tmp_path / "last.ckpt")
    try:
        fit(tmp_path, [checkpoint, Do(5, stuck)])
    except (KeyboardInterrupt, SystemExit):
        assert ends and not reached and not (tmp_path / "last.ckpt").exists()
    else:
        assert not ends and checkpoint.interrupted and (tmp_path / "last.ckpt").exists()
    finally:
        for number in handled:
            signal.signal(number, before[number])


def test_only_ctrl_c_insists_at_once_and_slurms_term_never(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    hup, term, ctrl_c = signal.SIGHUP, signal.SIGTERM, signal.SIGINT
    assert insists(ctrl_c, ctrl_c, 0) and insists(term, hup, APART_S)
    assert not insists(term, term, APART_S / 2) and not insists(ctrl_c, hup, 0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not insists(term, ctrl_c, 120) and insists(ctrl_c, term, APART_S)


def test_a_second_signal_ends_a_process_that_a_librarys_call_holds():
    """Python's own handlers wait for the call to return."""
    code = (
        "import ctypes, datamodules.signals as signals\n"
        "signals.GRACE_S = 0.1; signals.interrupt_on_stop()\n"
        "signals.end_at_second_stop('ended', 130)\n"
        "mutex = ctypes.create_string_buffer(64); libc = ctypes.CDLL(None)\n"
        "libc.pthread_mutex_lock(mutex); print('here', flush=True)\n"
        "libc.pthread_mutex_lock(mutex)\n"  # waits for itself
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"here\n"
    asleep = 0
    while asleep < 10:  # so long that it is in the call
        asleep = asleep + 1 if psutil.Process(process.pid).status() == "sleeping" else 0
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)  # the first one is heard by nobody
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said == b"ended\n"
