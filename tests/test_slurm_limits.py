"""A Slurm that is full, silent or refuses, and an environment that says otherwise: stand-ins."""

import dataclasses

import pytest
from slurm_stand_ins import StandIns
from test_runner import FIXTURES, LIBRARY, Heard

from experiments.runs.folder import RunFolder
from sweeps.executors import Unreachable, sbatch, slurm, squeue
from sweeps.executors.slurm import SlurmQueue
from sweeps.plan.graph import load_sweep
from sweeps.run.checks import job_of
from sweeps.run.runner import Interrupted, Runner
from sweeps.run.state import states

pytest.importorskip("submitit")
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "LOOK_EVERY_S", 0.0)
    return StandIns(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def queue(stand_ins, monkeypatch):
    queue = SlurmQueue("fixture_verbs")
    yield queue
    queue.close()


@pytest.fixture
def sweep():
    return load_sweep(FIXTURES / "diamond.yaml", "tiny", [0], LIBRARY, {"steps": 4})


@pytest.fixture
def jobs(sweep, tmp_path):
    """A job for each run, as if it needed no other; their folders exist."""
    runs = list(sweep.runs.values())
    for run in runs:
        RunFolder.create(run, tmp_path / "my runs")
    return [job_of(run, tmp_path / "my runs") for run in runs]


def submit(queue, *jobs):
    """What has become of each: kind and text of its event."""
    for job in jobs:
        queue.submit(job)
    return [(event.kind, event.text) for event in queue.poll(0)]


def refuse(stand_ins, *said):
    lines = "\n".join(f"sbatch: error: {line}" for line in said)
    stand_ins.instead("sbatch", f'cat >&2 <<"END"\n{lines}\nEND\nexit 1')


def test_memory_has_its_unit(queue, stand_ins, jobs):
    asks = {"mem_gb": 900, "timeout_min": 1440, "signal_s": 600}
    assert submit(queue, dataclasses.replace(jobs[0], slurm=asks)) == [("queued", "job 100")]
    options = [line.removeprefix("#SBATCH ") for line in stand_ins.script]
    assert {"--mem=921600M", "--time=1440", "--signal=USR2@600"} <= set(options)
    submit(queue, dataclasses.replace(jobs[1], slurm={"mem_gb": 1e-5}))
    assert "#SBATCH --mem=1M" in stand_ins.script, "0 is all the memory of a node"


@pytest.mark.parametrize(
    "said",
    [
        [POLICY],
        ["QOSMaxSubmitJobPerUserLimit", f"Batch job submission failed: {POLICY}"],
        ["AssocMaxSubmitJobLimit", f"Batch job submission failed: {POLICY}"],
        ["AssocGrpSubmitJobsLimit", f"Batch job submission failed: {POLICY}"],
        ["Slurm temporarily unable to accept job, sleeping and retrying"],
        ["Batch job submission failed: Resource temporarily unavailable"],
    ],
)
def test_a_full_queue_is_waited_for_and_asked_once_a_while(queue, stand_ins, jobs, said):
    submit(queue, jobs[0])
    refuse(stand_ins, *said)
    (first, why), *others = submit(queue, *jobs[1:4])
    assert first == "withdrawn" and "no room for more jobs" in why and said[0] in why
    assert others == [("withdrawn", "")] * 2 and len(stand_ins.calls("sbatch")) == 2
    assert queue.choose(jobs[1:]) == []
    queue._not_before = 0.0
    assert submit(queue, jobs[1]) == [("withdrawn", "")], "it is said once"
    stand_ins.instead("sbatch", "")
    queue._not_before = 0.0
    assert submit(queue, jobs[1]) == [("queued", "job 101")]


@pytest.mark.parametrize(
    "said",
    [
        [f"Batch job submission failed: {POLICY}"],  # with nothing in the queue: too large
        ["QOSMaxWallDurationPerJobLimit", f"Batch job submission failed: {POLICY}"],
        ["AssocMaxCpuPerJobLimit", f"Batch job submission failed: {POLICY}"],
        ["invalid partition specified: hihg"],
        ["Memory specification can not be satisfied"],
    ],
)
def test_what_never_fits_is_refused_with_what_was_asked_for(queue, stand_ins, jobs, said):
    refuse(stand_ins, *said)
    job = dataclasses.replace(jobs[0], slurm={"mem_gb": 2, "more": {"reservation": "video"}})
    ((kind, why),) = submit(queue, job)
    assert kind == "failed" and said[0] in why and "'mem': '2048M'" in why and "video" in why
    assert "launch.slurm" in why
    assert submit(queue, job)[0][0] == "failed", "it keeps no other job from being asked for"


def test_a_submission_that_hangs_is_ended_and_tried_again(queue, stand_ins, jobs, monkeypatch):
    monkeypatch.setattr(sbatch, "WITHIN_S", 0.2)
    stand_ins.instead("sbatch", "exec sleep 60")
    ((kind, why),) = submit(queue, jobs[0])
    assert kind == "withdrawn" and "does not answer" in why and "sbatch" in why


def test_a_slurm_before_20_02_is_asked_too(queue, stand_ins, jobs):
    submit(queue, jobs[0])
    stand_ins.put(100, jobs[0].folder, "RUNNING")
    assert [event.kind for event in queue.poll(0)] == ["started"]


SILENCES = {
    "says why": ("echo 'squeue: error: Invalid user' >&2; exit 1", "Invalid user"),
    "hangs": ("exec sleep 60", "did not answer within"),
}


@pytest.mark.parametrize(("shell", "why"), SILENCES.values(), ids=SILENCES)
def test_silence_is_told_and_ends(queue, stand_ins, jobs, monkeypatch, shell, why):
    submit(queue, *jobs[:2])
    monkeypatch.setattr(squeue, "_TIMEOUT_S", 0.2)
    stand_ins.instead("squeue", shell)
    (event,) = queue.poll(0)
    assert event.kind == "noted" and why in event.text and "15 min" in event.text
    assert queue.poll(0) == [], "told once"
    stand_ins.instead("squeue", "")
    assert queue.poll(0) == []
    stand_ins.instead("squeue", shell)
    assert [event.kind for event in queue.poll(0)] == ["noted"], "it began anew"
    monkeypatch.setattr(slurm, "PATIENCE_S", -1.0)
    with pytest.raises(Unreachable, match=f"no answer from Slurm.*{why}"):
        queue.poll(0)


def test_a_sweep_under_a_silent_slurm_ends_and_names_its_jobs(
    queue, stand_ins, sweep, tmp_path, monkeypatch
):
    monkeypatch.setattr(slurm, "PATIENCE_S", 0.0)
    monkeypatch.setattr("sweeps.run.runner.check", lambda *_: None)
    stand_ins.instead("squeue", "echo 'slurm_load_jobs error: no route' >&2; exit 1")
    with pytest.raises(Interrupted) as ended:
        Runner(sweep, tmp_path / "runs", queue, Heard()).run()
    said = "\n".join(ended.value.messages)
    assert "no route" in said and "jobs stay with Slurm" in said and "scancel 100 101" in said
    first = states(sweep.runs, tmp_path / "runs")[0]
    assert first.state == "new" and "no route" in first.note, "status says that it does not know"


def test_a_submission_without_an_answer_ends_too(queue, stand_ins, jobs, monkeypatch):
    refuse(stand_ins, "Unable to contact slurm controller (connect failure)")
    assert submit(queue, jobs[0])[0][0] == "withdrawn"
    monkeypatch.setattr(slurm, "PATIENCE_S", -1.0)
    queue._not_before = 0.0
    with pytest.raises(Unreachable, match="contact slurm controller"):
        queue.submit(jobs[0])


def test_a_job_without_a_program_is_cancelled_and_submitted_again(queue, stand_ins, jobs):
    """Its runner was killed between sbatch and storing what the job executes."""
    (jobs[0].folder / "slurm").mkdir()
    stand_ins.put(100, jobs[0].folder)
    assert submit(queue, jobs[0]) == [("queued", "job 101")]
    assert stand_ins.jobs() == {100: "CANCELLED", 101: "PENDING"}
    queue._given.clear()
    again = submit(queue, jobs[0])
    assert again == [("queued", "job 101, which was in the queue already")]


def test_without_an_answer_to_scancel_nothing_is_submitted(queue, stand_ins, jobs, monkeypatch):
    (jobs[0].folder / "slurm").mkdir()
    stand_ins.put(100, jobs[0].folder)
    monkeypatch.setattr(squeue, "_TIMEOUT_S", 0.2)
    stand_ins.instead("scancel", "exec sleep 60")
    ((kind, why),) = submit(queue, jobs[0])
    assert kind == "withdrawn" and "scancel did not answer" in why
    assert stand_ins.jobs() == {100: "PENDING"}


def test_a_job_that_waits_for_an_unusual_reason_says_so_once(queue, stand_ins, jobs):
    submit(queue, *jobs[:2])
    for id, job in enumerate(jobs[:2], 100):
        stand_ins.put(id, job.folder, reason="PartitionTimeLimit")
    (event,) = queue.poll(0)
    assert event.kind == "noted" and "PartitionTimeLimit" in event.text
    assert queue.poll(0) == [] and len(queue.jobs) == 2, "they are still waited for"


def test_the_environment_decides_nothing_that_the_scale_does(queue, stand_ins, jobs, monkeypatch):
    """A shell inside a job, and a profile that suits another program."""
    wrong = {
        "SBATCH_TIMELIMIT": "1", "SBATCH_ACCOUNT": "mine", "SBATCH_PARTITION": "debug",
        "SLURM_CPUS_PER_TASK": "7", "SLURM_STEP_NUM_TASKS": "8", "SQUEUE_PARTITION": "debug",
        "SCANCEL_INTERACTIVE": "1", "SLURM_CONF": "/etc/slurm/slurm.conf",
    }  # fmt: skip
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    submit(queue, dataclasses.replace(jobs[0], slurm={"partition": "h100"}))
    queue.poll(0)
    seen = stand_ins.environment("sbatch")
    left = {name: seen.get(name) for name in wrong if name in seen}
    assert left == {"SBATCH_ACCOUNT": "mine", "SLURM_CONF": "/etc/slurm/slurm.conf"}
    assert not {"SQUEUE_PARTITION", "SLURM_CPUS_PER_TASK"} & set(stand_ins.environment("squeue"))


def test_a_path_that_slurm_would_read_as_a_pattern_is_refused(queue, jobs, tmp_path):
    assert queue.problem(jobs[0]) == ""
    odd = dataclasses.replace(jobs[0], folder=tmp_path / "50%done" / "base-0")
    assert "%" in queue.problem(odd) and "rename" in queue.problem(odd)
