"""The real DeepSpeed on CPUs: every stage, every ZeRO stage (and DDP), in one, two and four
processes, against one process without it. All fits of as many processes run in one group of them
(deepspeed_program).
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import deepspeed_program
import pytest
import torch
from deepspeed_program import BATCH, CLIP, CRITIC_STEPS, LONGER, STAGES, STATES, STEPS, steps_of
from minimal import batch, network
from safetensors.torch import load_file

from datamodules.shards.reader import ShardWriter
from experiments.checkpoints.networks import load_network
from experiments.launch.ranks.topology import Topology, free_port

pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ZERO = (1, 2, 3)
WAYS = (*ZERO, "ddp")
DMD = [stage for stage, (_, _, roles) in STAGES.items() if "critic" in roles]
RESUMED = {("AsymmetricDMD", way): 5 for way in WAYS} | {("CausalCD", 3): 4}
RESUMED |= {("TeacherForcing", 3): STEPS}  # nothing is left but to hand on
"""Stopped at that step; 5 is inside a critic's round."""


def name(stage: str, zero: int | str, parts: int = 1) -> str:
    return f"{stage}-{zero}" + (f"-in-{parts}" if parts > 1 else "")


def case(stage: str, zero: int | str, parts: int = 1) -> dict:
    stop = RESUMED.get((stage, zero), 0) if parts == 1 else 0
    about = {"stage": stage, "strategy": "deepspeed", "zero_stage": zero}
    if zero == "ddp":
        about = {"stage": stage, "strategy": "ddp"}
    return about | {"name": name(stage, zero, parts), "parts": parts, "stop": stop}


TRAINED = (*LONGER, "TFdCM", "TFsCM", "TFMeanFlow", *DMD)
"""What ZeRO 1 and 2 split does not depend on the objective, so that of flow matching and of the ODE
regressions one stage is enough; DDP and ZeRO 3 follow a stage's forwards."""
MATRIX = [
    (stage, zero) for stage in STAGES for zero in WAYS if zero in (3, "ddp") or stage in TRAINED
]
OTHER = {"stage": "AsymmetricDMD", "strategy": "deepspeed"}
DDP = OTHER | {"strategy": "ddp"}
CASES = {
    1: [case("AsymmetricDMD", zero, parts=4) for zero in ZERO]
    + [DDP | {"name": "ddp-in-4", "parts": 4}],
    2: [case(stage, zero) for stage, zero in MATRIX]
    + [case("AsymmetricDMD", zero, parts=2) for zero in ZERO]
    + [DDP | {"name": "ddp-in-2", "parts": 2}]
    + [OTHER | {"name": f"bf16-{z}", "zero_stage": z, "precision": "bf16-mixed"} for z in (2, 3)]
    + [OTHER | {"name": f"recomputed-{z}", "zero_stage": z, "checkpointing": True} for z in (2, 3)],
    4: [OTHER | {"name": "on-4", "zero_stage": 3}, DDP | {"name": "ddp-on-4"}],
}


def in_group(world: int, cases: list[dict], shards: Path, folder: Path) -> None:
    """Run the program in `world` processes, or fail with what they said."""
    port, processes = free_port(), []
    for rank in range(world):
        topology = Topology(rank, world, rank, port=port)
        environment = {**os.environ, **topology.environment(), "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": f"{HERE}:{HERE.parent}", "PYTHONWARNINGS": "ignore"}
        words = [str(shards), str(folder), json.dumps(cases)]
        with open(folder / f"said-{rank}.txt", "w") as said:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(HERE / "deepspeed_program.py"), *words],
                    env=environment, stdout=said, stderr=said, start_new_session=True,
                )
            )  # fmt: skip
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    said = (folder / "said-0.txt").read_text()[-4000:]
    assert codes == [0] * world, said


@pytest.fixture(scope="module")
def fits(tmp_path_factory) -> dict[int, Path]:
    """Folders of what was fitted without DeepSpeed (0), by one process, by two and by four."""
    folder = tmp_path_factory.mktemp("deepspeed")
    data = batch(10, states=STATES)
    with ShardWriter(folder / "shards", "clips", about={}, negative=data["text"][0].numpy()) as to:
        for row, key in enumerate(data["key"]):
            fields = ("latents", "text", "trajectory")
            to.write(key, {f: data[f][row].numpy() for f in fields}, {"caption": key})
    folders = {world: folder / str(world) for world in (0, 2, 1, 4)}
    of_two = folders[2] / f"{name('AsymmetricDMD', 2)}.ckpt"
    foreign = OTHER | {"name": "foreign", "zero_stage": 2, "resume": str(of_two)}
    for world, to in folders.items():
        to.mkdir()
        if world:
            in_group(world, CASES[world] + [foreign] * (world == 1), folder / "shards", to)
    for stage in STAGES:
        about = {"stage": stage, "name": stage, "strategy": "auto"}
        made = deepspeed_program.fit(about, str(folder / "shards"), folders[0])
        deepspeed_program.write(*made, stage, folders[0])
    return folders


def seen(folder: Path, name: str) -> list[dict]:
    """What each rank saw."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-[0-9].json"))]


def mean(folder: Path, name: str, steps: int = STEPS) -> torch.Tensor:
    """Loss of each step: over ranks, and over the parts of a batch."""
    values = torch.tensor([rank["losses"] for rank in seen(folder, name)])
    return values.mean(0).reshape(steps, -1).mean(1)


def assert_near(found: Path, wanted: Path) -> None:
    found, wanted = load_file(found), load_file(wanted)
    assert found.keys() == wanted.keys() and len(wanted) > 60
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize(("stage", "zero"), MATRIX)
def test_two_processes_equal_one(fits, stage, zero):
    """Losses, weights, the average and the target, under clipping that is always at work."""
    one, two, steps = fits[0], fits[2], steps_of(stage)
    ranks = seen(two, name(stage, zero))
    assert len(ranks) == 2 and ranks[0]["losses"] != ranks[1]["losses"], "each its own half"
    assert ranks[0]["steps"] == list(range(1, steps + 1)), "steps count as the recipe says"
    wanted = mean(one, stage, steps)
    torch.testing.assert_close(mean(two, name(stage, zero), steps), wanted, rtol=1e-4, atol=1e-5)
    assert_near(two / f"{name(stage, zero)}.safetensors", one / f"{stage}.safetensors")
    norms = [step[0] for step in ranks[0]["norms"]]
    expected = [step[0] for step in seen(one, stage)[0]["norms"]]
    assert norms == pytest.approx(expected, rel=1e-3), "the norm before clipping"
    assert min(norms) > CLIP, "clipping is at work at every step, or this shows nothing"


@pytest.mark.parametrize(("stage", "zero"), MATRIX)
def test_a_student_is_handed_on_as_one_file(fits, stage, zero):
    handed = load_network(fits[2] / name(stage, zero)).state_dict()
    weights = load_file(fits[2] / f"{name(stage, zero)}.safetensors")
    start = network(1).state_dict()
    for key, value in handed.items():
        assert torch.equal(value, weights[f"evaluated.{key}"])
    moved = [key for key in start if not torch.allclose(handed[key], start[key], atol=1e-4)]
    assert len(moved) > len(start) / 2


@pytest.mark.parametrize("stage", DMD)
@pytest.mark.parametrize("zero", WAYS)
def test_networks_take_turns_and_ranks_do_the_same(fits, stage, zero):
    ranks = seen(fits[2], name(stage, zero))
    turns = [["student"] if s % (1 + CRITIC_STEPS) == 0 else ["critic"] for s in range(STEPS)]
    for rank in ranks:
        assert rank["moved"] == turns, "the one that waits stays as it is, bit for bit"
    assert ranks[0]["forwards"] == ranks[1]["forwards"], "or ZeRO-3 would hang"
    assert ranks[0]["forwards"] == seen(fits[0], stage)[0]["forwards"]


@pytest.mark.parametrize(("stage", "zero"), MATRIX)
def test_zero_3_splits_every_network_also_the_frozen(fits, stage, zero):
    weights = load_file(fits[2] / f"{name(stage, zero)}.safetensors")
    student = sum(each.numel() for key, each in weights.items() if key.startswith("student."))
    for rank in seen(fits[2], name(stage, zero)):
        for role, held in rank["held"].items():
            other = sum(parameter.numel() for parameter in network(1).parameters())
            whole = student if role == "student" else other
            assert held == pytest.approx(whole / 2 if zero == 3 else whole, rel=0.01), role


@pytest.mark.parametrize(("stage", "zero"), RESUMED)
def test_resumed_equals_never_interrupted(fits, stage, zero):
    """Bit for bit: student, critic (by what it then makes of the student), average, target."""
    folder, whole, stop = fits[2], name(stage, zero), RESUMED[stage, zero]
    rest = seen(folder, f"{whole}-resumed")
    assert rest[0]["steps"] == list(range(stop + 1, STEPS + 1)), "any rank can be asked"
    for rank, full in zip(rest, seen(folder, whole), strict=True):
        assert rank["losses"] == full["losses"][stop:]
        assert rank["moved"] == full["moved"][stop:]
    found, wanted = (
        load_file(folder / f"{each}.safetensors") for each in (f"{whole}-resumed", whole)
    )
    for key, value in found.items():
        assert torch.equal(value, wanted[key]), key
    assert wanted.keys() - found.keys() == {"sampled"}, "that was before the interruption"


@pytest.mark.parametrize("zero", ZERO)
def test_checkpoints_hold_what_is_trained_and_one_generation(fits, zero):
    last = fits[2] / f"{name('AsymmetricDMD', zero)}.ckpt"
    assert last.is_symlink() and len(list(fits[2].glob(f".{last.name}.*"))) == 1
    files = list((last / "checkpoint").glob("*_model_states.pt"))
    assert len(files) == (2 if zero == 3 else 1), "each rank its share"
    for file in files:
        saved = torch.load(file, weights_only=True)
        assert not saved.get("frozen_param_shapes"), "the one that waited is not frozen"
        tensors = saved["module"]
        assert {key.split(".")[0] for key in tensors} == {"student", "critic"}


PARTS = [(world, BATCH // world, f"AsymmetricDMD-{z}-in-{BATCH // world}") for world in (1, 2)
         for z in ZERO] + [(1, 4, "ddp-in-4"), (2, 2, "ddp-in-2"), (4, 1, "ddp-on-4"),
                           (4, 1, "on-4")]  # fmt: skip


@pytest.mark.parametrize(("world", "parts", "made"), PARTS)
def test_parts_of_a_batch_are_the_batch(fits, world, parts, made):
    """1 process x 4 parts = 2 x 2 = 4 x 1 = one process with the whole batch at once."""
    assert world * parts == BATCH
    (first, *_) = seen(fits[world], made)
    assert first["steps"][parts - 1 :: parts] == list(range(1, STEPS + 1))
    wanted = mean(fits[0], "AsymmetricDMD")
    torch.testing.assert_close(mean(fits[world], made) * parts, wanted, rtol=1e-4, atol=1e-5)
    norms = [step[0] for step in first["norms"][parts - 1 :: parts]]
    whole = [step[0] for step in seen(fits[0], "AsymmetricDMD")[0]["norms"]]
    assert norms == pytest.approx(whole, rel=1e-3), "divided by the number of parts once"
    assert_near(fits[world] / f"{made}.safetensors", fits[0] / "AsymmetricDMD.safetensors")


@pytest.mark.parametrize("zero", (2, 3))
def test_bfloat16_computes_and_is_kept_nowhere(fits, zero):
    """Losses differ by the compute's rounding; weights and average are float32 and as fine. The
    frozen teacher is bfloat16, as a fit makes it.
    """
    exact, rough = mean(fits[0], "AsymmetricDMD"), mean(fits[2], f"bf16-{zero}")
    assert set(seen(fits[2], f"bf16-{zero}")[0]["autocast"]) == {True}
    assert set(seen(fits[2], name("AsymmetricDMD", zero))[0]["autocast"]) == {False}
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.01)
    for key, value in load_file(fits[2] / f"bf16-{zero}.safetensors").items():
        assert value.dtype == torch.float32, key
        assert not torch.equal(value, value.bfloat16().float()), key


@pytest.mark.parametrize("zero", (2, 3))
def test_recomputed_activations_change_nothing(fits, zero):
    found = fits[2] / f"recomputed-{zero}.safetensors"
    assert_near(found, fits[0] / "AsymmetricDMD.safetensors")


def test_another_number_of_processes_is_refused_with_the_cure(fits):
    said = (fits[1] / "foreign.txt").read_text()
    assert re.search("written with processes=2 .*, this run has processes=1 .*; go on as", said)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("zero", ZERO)
def test_on_gpus(fits, tmp_path, zero):
    """As on the CPU, on at most two of them."""
    cases = [OTHER | {"name": "gpu", "zero_stage": zero, "accelerator": "gpu"}]
    in_group(min(2, torch.cuda.device_count()), cases, fits[0].parent / "shards", tmp_path)
    wanted = load_file(fits[0] / "AsymmetricDMD.safetensors")
    for key, value in load_file(tmp_path / "gpu.safetensors").items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-3, atol=1e-3, msg=key)
