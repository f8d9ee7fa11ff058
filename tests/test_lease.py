"""The lock of a run folder between machines: heartbeats, Slurm jobs that are gone, restarts."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

from experiments.runs import lock as lease
from experiments.runs.lock import Busy, Lease

ELSEWHERE = {"process": 7, "host": "another", "job": "", "since": "noon"}


def left_by(folder, age_s=0.0, **holder):
    """A lease as a process on another machine leaves it, where flock stays on one machine."""
    path = folder / "lease"
    path.write_text(json.dumps(ELSEWHERE | holder))
    os.utime(path, (time.time() - age_s,) * 2)
    return Lease(folder)


def squeue(folder, monkeypatch, text, status=0):
    (folder / "bin").mkdir()
    program = folder / "bin" / "squeue"
    program.write_text(f"#!/bin/sh\necho '{text}' >&$((1 + {int(status > 0)}))\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=":")


def test_a_holder_elsewhere_is_alive_while_it_touches_its_lease(tmp_path):
    found = left_by(tmp_path)
    assert found.held()
    with pytest.raises(Busy, match="process 7 on another, since noon"), found.hold():
        pass
    assert found.holder().host == "another", "a refused process leaves it alone"
    stale = left_by(tmp_path, age_s=lease.STALE_S + 1)
    assert not stale.held()
    with stale.hold():
        assert stale.held() and stale.holder().process == os.getpid()


def test_the_end_of_a_holder_is_seen_elsewhere_at_once(tmp_path):
    with Lease(tmp_path).hold():
        pass
    assert Lease(tmp_path).holder() is None and not Lease(tmp_path).held()


def test_a_holder_keeps_touching_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    with Lease(tmp_path).hold():
        os.utime(tmp_path / "lease", (0, 0))
        time.sleep(0.2)
        assert time.time() - (tmp_path / "lease").stat().st_mtime < 10


@pytest.mark.parametrize(
    ("text", "status", "alive"),
    [
        ("RUNNING", 0, True),
        ("PENDING", 0, True),
        ("NODE_FAIL", 0, False),
        ("", 0, False),
        ("slurm_load_jobs error: Invalid job id specified", 1, False),
        ("Unable to contact slurm controller", 1, True),
    ],
)
def test_the_lock_of_a_job_that_is_gone_is_broken(tmp_path, monkeypatch, text, status, alive):
    squeue(tmp_path, monkeypatch, text, status)
    found = left_by(tmp_path, job="12")
    assert found.held() is alive
    if not alive:
        with found.hold():
            assert found.holder().host != "another"


@pytest.mark.parametrize(
    ("text", "status", "alive"), [("SUSPENDED", 0, True), ("Unable to contact", 1, False)]
)
def test_a_silent_holder_lives_as_long_as_its_job_is_there(
    tmp_path, monkeypatch, text, status, alive
):
    squeue(tmp_path, monkeypatch, text, status)
    assert left_by(tmp_path, age_s=lease.STALE_S + 1, job="12").held() is alive


def test_a_requeued_job_takes_its_own_lock_over_from_the_node_that_failed(tmp_path, monkeypatch):
    squeue(tmp_path, monkeypatch, "RUNNING")  # as it is, here
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with left_by(tmp_path, job="12").hold():
        assert Lease(tmp_path).holder().job == "12"
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    with pytest.raises(Busy, match="Slurm job 12"), left_by(tmp_path, job="12").hold():
        pass


@pytest.fixture
def without_locks(monkeypatch):
    """As Lustre mounted without ``flock`` answers."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_where_there_are_no_locks_the_file_tells(tmp_path, without_locks):
    with Lease(tmp_path).hold():
        assert Lease(tmp_path).held()
        with pytest.raises(Busy, match=f"process {os.getpid()}"), Lease(tmp_path).hold():
            pass
        assert Lease(tmp_path).holder().process == os.getpid()
    assert not Lease(tmp_path).held()


def test_a_killed_process_without_locks_holds_nothing_here(tmp_path, without_locks):
    host = lease.Holder.this().host
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = left_by(tmp_path, process=process.pid, host=host)
    assert found.held()
    process.kill()
    process.wait()
    assert not found.held()
    with found.hold():
        assert found.holder().process == os.getpid()
    assert not left_by(tmp_path, lease.STALE_S + 1, process=os.getpid(), host=host).held()


def test_of_two_that_write_at_the_same_time_one_goes_on(tmp_path, monkeypatch):
    """flock stays on one machine: each has looked and seen nobody, the other one writes last."""
    monkeypatch.setattr(time, "sleep", lambda _: left_by(tmp_path))
    with pytest.raises(Busy, match="process 7 on another"), Lease(tmp_path).hold():
        pytest.fail("both go on")
    assert Lease(tmp_path).holder().host == "another", "and its name is left to it"


def test_one_that_takes_over_while_we_ask_slurm_is_seen(tmp_path, monkeypatch):
    found = left_by(tmp_path, job="12")
    monkeypatch.setattr(lease, "job_is_gone", lambda *_, **__: bool(left_by(tmp_path, job="13")))
    with pytest.raises(Busy, match="Slurm job 13"), found.hold():
        pytest.fail("both go on")


def test_a_name_is_on_the_disk_before_its_owner_goes_on(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (synced.append(Lease(tmp_path).holder()), fsync(file))
    )
    with Lease(tmp_path).hold():
        assert [holder.process for holder in synced] == [os.getpid()]


def test_what_nobody_can_read_holds_nothing(tmp_path):
    (tmp_path / "lease").write_text("process 7 on another, as earlier versions wrote it")
    assert not Lease(tmp_path).held()
