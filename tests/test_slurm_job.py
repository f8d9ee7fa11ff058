"""Slurm's signals inside a job: one interruption, one save, one requeue, whatever their order."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_launcher import group  # noqa: F401
from toy_training import Do
from toy_training import fit as fit_toy

from callbacks.checkpointing import Checkpoint
from datamodules.shards.reader import ShardWriter
from datamodules.video import VideoDataModule
from experiments.launch.ranks import launcher as team
from experiments.launch.ranks.launcher import RankLost
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Library, resolve

pytest.importorskip("submitit")
from sweeps.executors import slurm_job  # noqa: E402
from sweeps.executors.slurm_job import SlurmRun, _Asked  # noqa: E402

FIXTURES = Path(__file__).parent / "fixtures"
TERM, USR2 = signal.SIGTERM, signal.SIGUSR2
SIGNALS = (signal.SIGINT, TERM, USR2)


class Requeued(SystemExit):
    """What submitit's handler raises when the job is in the queue again."""


@pytest.fixture(autouse=True)
def requeued(monkeypatch, tmp_path):
    """Signals as submitit leaves them to a job; returns the list of requeues."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    calls = []

    def requeue(number, frame):
        calls.append(number)
        raise Requeued

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(TERM, lambda *_: None)
    signal.signal(USR2, requeue)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.syspath_prepend(str(FIXTURES))
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


def send(numbers):
    """One signal after the other, from outside what they interrupt."""

    def send_all():
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    threading.Thread(target=send_all, name="sender").start()


def all_sent():
    """Wait until the last signal of this test has been sent."""
    for thread in threading.enumerate():
        if thread.name == "sender":
            thread.join()


def job(tmp_path, monkeypatch, after_step, *sent):
    """A run of six steps whose process hears signals when a step has been saved."""
    library = Library(FIXTURES / "recipes", FIXTURES / "scale")
    folder = RunFolder.create(resolve("base", "tiny", {"steps": 6}, library), tmp_path)

    def hear(self, done, total, note=""):
        if done == after_step:
            send(sent)
            time.sleep(5)  # a batch that takes long

    monkeypatch.setattr(RunFolder, "progress", hear)
    return SlurmRun(folder.path, "fixture_verbs"), folder


@pytest.mark.parametrize("sent", [[USR2], [TERM, USR2], [USR2, TERM], [USR2, USR2]])
def test_a_warning_saves_and_queues_again_once(tmp_path, monkeypatch, requeued, sent):
    run, folder = job(tmp_path, monkeypatch, 2, *sent)
    with pytest.raises(Requeued):
        run()
    all_sent()
    assert requeued == [USR2] and folder.state() == "interrupted"
    assert (folder.path / "checkpoints" / "last.ckpt").read_text().startswith("2 ")
    monkeypatch.setattr(RunFolder, "progress", lambda *_: None)
    signal.signal(USR2, lambda *_: pytest.fail("nobody asked"))
    run.checkpoint().result()
    assert folder.done


def test_a_mere_term_saves_and_leaves_the_rest_to_slurm(tmp_path, monkeypatch, requeued):
    run, folder = job(tmp_path, monkeypatch, 2, TERM)
    monkeypatch.setattr(slurm_job, "END_WITHIN_S", 0.1)
    with pytest.raises(TimeoutError):
        run()
    assert not requeued and folder.state() == "interrupted" and not folder.failure()


def test_only_the_first_node_asks_for_the_requeue(tmp_path, monkeypatch, requeued):
    run, _ = job(tmp_path, monkeypatch, 2, USR2)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr(slurm_job, "END_WITHIN_S", 0.1)
    with pytest.raises(TimeoutError):
        run()
    assert not requeued


@pytest.fixture
def losing(group, tmp_path, monkeypatch):  # noqa: F811
    """A job of two ranks, one of which is killed, and the jobs that are queued again."""
    program, asked = tmp_path / "bin" / "scontrol", tmp_path / "asked"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $* >> {asked}\n")
    program.chmod(0o755)
    asked.touch()
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(team, "GRACE_S", 0.2)
    monkeypatch.setattr(slurm_job, "SETTLE_S", 0.1)
    monkeypatch.setattr(slurm_job, "END_WITHIN_S", 1.0)
    folder = group("die")

    def lose(task=0, restart=0):
        monkeypatch.setenv("SLURM_PROCID", str(task))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        with pytest.raises(TimeoutError):  # Slurm would have ended it
            SlurmRun(folder.path, "light")()
        return asked.read_text().splitlines()

    return folder, lose


def test_a_lost_rank_queues_the_job_again_once(losing):
    folder, lose = losing
    assert lose(task=1) == ["requeue 12"], "the first one that knows, also if it is not the first"
    assert lose(task=0) == ["requeue 12"], "the other one waits for Slurm"
    assert folder.state() == "interrupted" and not folder.failure()


def test_a_job_that_is_lost_again_and_again_fails_unless_it_comes_further(losing):
    folder, lose = losing
    for restart in range(slurm_job.LOSSES):
        assert len(lose(restart=restart)) == restart + 1
    with pytest.raises(RankLost, match="rank 1 of 2.*SIGKILL"):
        lose(restart=slurm_job.LOSSES)
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints" / "last.ckpt").touch()
    assert len(lose(restart=9)) == slurm_job.LOSSES + 1


@pytest.mark.parametrize("number", [TERM, USR2])
@pytest.mark.parametrize("after_s", [0.0, 0.2])
def test_a_rank_that_is_lost_to_a_signal_of_slurms_is_left_to_it(
    losing, monkeypatch, number, after_s
):
    """Whether this task hears of it before it knows of the rank, or after."""
    _, lose = losing
    monkeypatch.setattr(slurm_job, "SETTLE_S", 0.5)

    def killed(*_, **__):
        if after_s:
            threading.Timer(after_s, os.kill, (os.getpid(), number)).start()
        else:
            send([number])
        raise RankLost("rank 1 of 2 was killed by SIGKILL")

    monkeypatch.setattr(slurm_job, "execute", killed)
    assert lose(task=1) == []


@pytest.mark.parametrize("sent", [[USR2], [TERM, USR2], [USR2, TERM], [TERM, USR2, TERM]])
def test_a_fit_ends_its_batch_and_saves_whatever_comes(tmp_path, sent):
    asked = _Asked()
    checkpoint = Checkpoint(tmp_path / "last.ckpt")
    warn = Do(5, lambda: (send(sent), time.sleep(0.3)))
    _, trainer = fit_toy(tmp_path, [checkpoint, warn])
    assert checkpoint.interrupted and trainer.global_step == checkpoint.saved_step == 6
    assert asked.to_requeue


def test_a_forked_process_leaves_signals_alone():
    asked = _Asked()
    child = os.fork()
    if not child:
        os.kill(os.getpid(), USR2)
        os._exit(int(asked.to_requeue))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_loaders_of_data_outlive_the_signals_of_a_job(tmp_path):
    with ShardWriter(tmp_path, "clips", about={}, samples_per_shard=4) as writer:
        for i in range(8):
            arrays = {"latents": np.full((1, 1, 1, 1), i, np.float16)}
            arrays["text"] = np.zeros((1, 1), np.float32)
            writer.write(f"clip-{i}", arrays, {"caption": ""})
    loader = VideoDataModule(tmp_path, batch=2, steps=30, seed=0, workers=1).train_dataloader()
    batches = iter(loader)
    next(batches)
    (worker,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1:]
    for number in SIGNALS:
        os.kill(int(worker), number)
    time.sleep(0.2)
    assert sum(1 for _ in batches) == 29
