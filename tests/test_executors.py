"""Executors: cores, GPUs, resources of a Slurm job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_runner import FIXTURES, ROOT, Heard

from experiments.runs.recipe import Library, Resolver, recipes
from sweeps.executors import devices, executor
from sweeps.executors.local import LocalPool
from sweeps.executors.resources import Resources
from sweeps.plan.costs import Costs
from sweeps.plan.graph import load_sweep
from sweeps.run.checks import Refused, job_of
from sweeps.run.runner import Runner

VERBS = """
import json, os, time
def check(recipe): pass
def run(recipe, folder):
    started = time.time()
    time.sleep(recipe["fit"]["takes_s"])
    seen = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}
    seen |= {"local_rank": os.environ.get("LOCAL_RANK"), "from": started, "to": time.time()}
    rank = os.environ.get("RANK", "0")
    (folder.path / f"seen.{rank}.json").write_text(json.dumps(seen))
"""
RECIPE = """
verb: fit
seed: 0
number: 0
takes_s: 0.2
devices: 1
accelerator: auto
fit: {steps: 1, number: "${number}", takes_s: "${takes_s}"}
launch: {devices: "${devices}", accelerator: "${accelerator}"}
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A library with one recipe, whose verb writes down which GPUs it sees; returns its sweeps."""
    for name in ("recipes", "scale", "seeing_verbs"):
        (tmp_path / name).mkdir()
    (tmp_path / "recipes" / "one.yaml").write_text(RECIPE)
    (tmp_path / "scale" / "tiny.yaml").write_text("seed: 0")
    (tmp_path / "seeing_verbs" / "fit.py").write_text(VERBS)
    path = os.pathsep.join(map(str, [ROOT, tmp_path, FIXTURES]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def sweep(*settings):
        cells = [
            {"runs": {"it": {"recipe": "one", "number": number} | each}}
            for number, each in enumerate(settings)
        ]
        (tmp_path / "sweep.yaml").write_text(json.dumps({"cells": cells}))
        library = Library(tmp_path / "recipes", tmp_path / "scale")
        return load_sweep(tmp_path / "sweep.yaml", "tiny", [0], library)

    return sweep


def go(sweep, runs, pool):
    """What every run saw: lists of dicts, one per rank, in the order of the sweep."""
    runs.mkdir()
    outcome = Runner(sweep, runs, pool, Heard()).run()
    assert not outcome.failed
    return [
        [json.loads(file.read_text()) for file in sorted((runs / name).glob("seen.*.json"))]
        for name in sweep.runs
    ]


def overlapping(runs):
    """Pairs of runs that were in work at the same time."""
    firsts = [ranks[0] for ranks in runs]
    return [
        (a, b)
        for i, a in enumerate(firsts)
        for b in firsts[i + 1 :]
        if a["from"] < b["to"] and b["from"] < a["to"]
    ]


def test_runs_fill_the_gpus_and_never_share_one(world, tmp_path):
    pool = LocalPool(4, "seeing_verbs", ["0", "2", "GPU-3"])
    runs = go(world(*[{}] * 7), tmp_path / "runs", pool)
    assert {ranks[0]["gpus"] for ranks in runs} == {"0", "2", "GPU-3"}
    together = overlapping(runs)
    assert together and all(a["gpus"] != b["gpus"] for a, b in together)
    processes = {ranks[0]["process"] for ranks in runs}
    assert len(processes) == 3, "a worker stays on its GPU"


def test_a_run_of_several_devices_has_them_to_itself(world, tmp_path):
    sweep = world({}, {"devices": 2}, {}, {"devices": 2}, {"takes_s": 0.6})
    runs = go(sweep, tmp_path / "runs", LocalPool(4, "seeing_verbs", ["0", "1", "2"]))
    for ranks, run in zip(runs, sweep.runs.values(), strict=True):
        count = run.recipe["launch"]["devices"]
        assert len(ranks) == count and len(ranks[0]["gpus"].split(",")) == count
        assert len({rank["process"] for rank in ranks}) == count
    for a, b in overlapping(runs):
        assert not set(a["gpus"].split(",")) & set(b["gpus"].split(","))


def test_runs_for_a_cpu_take_cores_and_see_no_gpu(world, tmp_path):
    settings = [{"accelerator": "cpu"}] * 3 + [{}]
    runs = go(world(*settings), tmp_path / "runs", LocalPool(2, "seeing_verbs", ["5"]))
    assert [ranks[0]["gpus"] for ranks in runs] == ["", "", "", "5"]


def test_without_gpus_nothing_is_said_of_them(world, tmp_path):
    runs = go(world({}, {"devices": 2}), tmp_path / "runs", LocalPool(2, "seeing_verbs"))
    assert [len(ranks) for ranks in runs] == [1, 2]
    assert all(rank["gpus"] is None for ranks in runs for rank in ranks)


def test_too_many_devices_are_refused_before_anything_starts(world, tmp_path):
    pool = LocalPool(2, "seeing_verbs", ["0", "1"])
    with pytest.raises(Refused, match="launch.devices: 3, but this machine has 2 GPUs"):
        go(world({}, {"devices": 3}), tmp_path / "runs", pool)
    assert not list((tmp_path / "runs").iterdir())


def jobs(world, *settings):
    return [job_of(run, Path()) for run in world(*settings).runs.values()]


def test_nothing_overtakes_what_waits_for_the_same_place(world):
    pool = LocalPool(2, "seeing_verbs", ["0", "1", "2"])
    asked = jobs(world, {"devices": 2}, {"devices": 2}, {}, *[{"accelerator": "cpu"}] * 3)
    chosen = pool.choose(asked)
    assert [job.run for job in chosen] == [asked[i].run for i in (0, 3, 4)]


@pytest.mark.parametrize(
    ("variable", "ids"), [("0,3", ["0", "3"]), ("", []), ("-1", []), ("1,-1,2", ["1"])]
)
def test_the_variable_decides_which_gpus_there_are(monkeypatch, variable, ids):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert devices.visible_gpus() == ids


def test_gpus_are_counted_without_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = tmp_path / "gpus"
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (driver / name).mkdir(parents=True)
    monkeypatch.setattr(devices, "_DRIVER", driver)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.visible_gpus() == ["0", "1"]
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    assert devices.visible_gpus() == ["0"], "a container shows fewer than the machine has"


def test_a_cluster_without_slurm_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no sbatch here; start this on a login node"):
        executor("slurm")


RECIPE_OF_16 = {
    "verb": "fit",
    "fit": {"steps": 1},
    "launch": {"nodes": 2, "devices": 8, "accelerator": "gpu"},
}


def test_a_job_is_one_task_a_node_with_the_gpus_of_its_ranks():
    asked = Resources.of({"cpus_per_task": 96, "mem_gb": 800, "partition": "h100"})
    found = asked.parameters(RECIPE_OF_16)
    assert (found["nodes"], found["ntasks_per_node"], found["gpus_per_node"]) == (2, 1, 8)
    assert found["mem"] == "819200M" and "--cpus-per-task=96" in found["srun_args"]
    assert "--kill-on-bad-exit=1" in found["srun_args"], "ranks end together"
    one = asked.parameters(RECIPE_OF_16 | {"verb": "score"})
    assert (one["nodes"], one["gpus_per_node"]) == (1, 1), "only training and shards take several"
    shards = asked.parameters(RECIPE_OF_16 | {"verb": "sample"})
    assert (shards["nodes"], shards["ntasks_per_node"], shards["gpus_per_node"]) == (2, 1, 8)
    assert {"--kill-on-bad-exit=0", "--no-kill"} <= set(shards["srun_args"])
    numbers = Resources.of({"timeout_min": 60, "cpus_per_task": 2, "signal_s": 30}).parameters(
        RECIPE_OF_16
    )
    assert {type(numbers[key]) for key in ("time", "cpus_per_task", "signal_delay_s")} == {int}
    cpu = Resources.of({}).parameters({"verb": "sample", "launch": {"accelerator": "cpu"}})
    assert "gpus_per_node" not in cpu and "partition" not in cpu


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partitoin": "h100"}, "launch.slurm.partitoin.*did you mean 'partition'"),
        ({"partition": 83}, "launch.slurm.partition: 83"),  # 0123, read as an octal number
        ({"account": None}, "launch.slurm.account is empty"),
        ({"cpus_per_task": 0}, "launch.slurm.cpus_per_task: 0"),
        ({"mem_gb": True}, "launch.slurm.mem_gb: True"),
        ({"mem_gb": -1}, "launch.slurm.mem_gb: -1"),
        ({"mem_gb": float("inf")}, "launch.slurm.mem_gb: inf"),
        ({"mem_gb": 921600}, "launch.slurm.mem_gb: 921600"),  # megabytes
        ({"timeout_min": 0}, "launch.slurm.timeout_min: 0"),
        ({"timeout_min": "24:00:00"}, "launch.slurm.timeout_min: '24:00:00'"),
        ({"timeout_min": "1-00:00:00"}, "launch.slurm.timeout_min: '1-00:00:00'"),
        ({"timeout_min": 86400}, "launch.slurm.timeout_min: 86400"),  # the same in seconds
        ({"signal_s": 0}, "launch.slurm.signal_s: 0"),
        ({"signal_s": 3600}, "launch.slurm.signal_s: 3600 s .* 60 minutes"),
        ({"restarts": -1}, "launch.slurm.restarts: -1"),
        ({"gpus_per_node": -2}, "launch.slurm.gpus_per_node: -2"),
        ({"setup": "module load cuda"}, "launch.slurm.setup: 'module load cuda'"),
        ({"more": {"time": 43200}}, "launch.slurm.more.time: set timeout_min instead"),
        ({"more": {"--mem": "900G"}}, "launch.slurm.more.--mem: set mem_gb instead"),
        ({"more": {"cpus-per-task": 2}}, "more.cpus-per-task: set cpus_per_task instead"),
        ({"more": {"nodes": 2}}, "more.nodes: set launch.nodes instead"),
        ({"more": {"comment": "mine"}}, "more.comment: this program sets it itself"),
        ({"more": {"depend": "afterok:1"}}, "more.depend: this program sets it itself"),
        ({"more": {"exclusive": False}}, "more.exclusive: False is no value"),
        ({"more": {"nodelist": ["n1", "n2"]}}, "more.nodelist: .* is no value"),
    ],
)
def test_a_mistaken_request_names_the_key(settings, message):
    with pytest.raises(ValueError, match=message):
        Resources.of(settings)


def test_further_options_are_those_that_no_setting_makes():
    more = {"exclusive": True, "nodelist": "n[01-04]", "mem_per_cpu": "4G", "begin": "16:00"}
    assert Resources.of({"more": more}).more == more


def test_resources_are_the_defaults_under_the_recipes_own(tmp_path):
    here = Path(__file__).parent / "slurm" / "library"
    library = Library(here / "recipes", here / "scale")
    runs = load_sweep(here / "sweep.yaml", "cluster", [0], library).runs.values()
    asks = {run.recipe["recipe"]: run.slurm for run in runs}
    assert asks["base"] == {"partition": "low", "mem_gb": 1, "timeout_min": 5, "signal_s": 30}
    assert asks["join"] == asks["base"] | {"cpus_per_task": 2}
    assert all("slurm" not in run.recipe["launch"] for run in runs)


def test_a_scale_on_top_of_another_says_what_single_recipes_ask_for(tmp_path):
    here = Path(__file__).parent / "slurm" / "library"
    library = Library(here / "recipes", tmp_path)
    (tmp_path / "cluster.yaml").write_text((here / "scale" / "cluster.yaml").read_text())
    mine = "extends: cluster\nlaunch: {slurm: {default: {qos: fast}, %s: {mem_gb: 7}}}\n"
    (tmp_path / "mine.yaml").write_text(mine % "judge")
    run = load_sweep(here / "sweep.yaml", "mine", [0], library).cells[0].runs["judged"]
    assert run.slurm["qos"] == "fast" and run.slurm["mem_gb"] == 7
    assert run.slurm["partition"] == "low", "what the other scale says stays"
    (tmp_path / "mine.yaml").write_text(mine % "juge")
    with pytest.raises(ValueError, match="launch.slurm.juge: there is no such recipe; did you"):
        load_sweep(here / "sweep.yaml", "mine", [0], library)


@pytest.mark.parametrize("scale", sorted(path.stem for path in Library().scales.glob("*.yaml")))
def test_a_job_may_be_started_again_as_often_as_its_run_takes(scale, tmp_path):
    """Twice as often as by the scale's own costs: those are estimates."""
    resolver, costs = Resolver(scale), Costs(tmp_path)
    for name in recipes():
        try:
            run = resolver.resolve(name)
        except (ValueError, FileNotFoundError):
            continue  # not a recipe of this scale
        asks = Resources.of(run.slurm)
        segment_s = 60 * asks.timeout_min - asks.signal_s
        assert asks.restarts >= 2 * (costs.estimate(run) or 0) / segment_s, name


def test_sweeps_do_not_import_torch_to_submit():
    modules = "sweeps.executors.slurm, sweeps.executors.slurm_job"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
