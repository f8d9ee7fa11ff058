"""Real fits in several processes through the command line: killed, interrupted, by torchrun, on two
nodes. The result equals that of one process.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from minimal_runs import SETTINGS, Verb, copied, only, prepared
from safetensors.torch import load_file

from experiments.launch.ranks.topology import free_port
from experiments.runs.folder import RunFolder

pytestmark = pytest.mark.slow
STAGE = "stage3_asymmetric_dmd"
TWO = ("launch.devices=2", "launch.timeout_s=60")
ROOT = Path(__file__).parent.parent


def assert_same_student(made: Path) -> None:
    """As that of one process, which was never interrupted, but for the rounding of sums."""
    (found,), (wanted,) = (
        list((run / "student").glob("*.safetensors")) for run in (made, only(prepared(), STAGE))
    )
    found, wanted = load_file(found), load_file(wanted)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)


def wait_for_steps(verb, log: Path, count: int) -> None:
    """Until the last checkpoint has been replaced `count` times."""
    last, seen, before = log.parent / "checkpoints" / "last.ckpt", 0, None
    end = time.monotonic() + 90
    while seen < count:
        assert verb.process.is_alive() and time.monotonic() < end, verb.said
        now = os.readlink(last) if last.is_symlink() else None
        seen, before = seen + (now != before), now
        time.sleep(0.002)


def ranks(folder: Path) -> dict[int, int]:
    """Process ids by rank, from what each has said last."""
    found = {}
    for log in folder.glob("log*.txt"):
        for rank, pid in re.findall(r"rank (\d+) of .* starts \(process (\d+)\)", log.read_text()):
            found[int(rank)] = int(pid)
    return found


def test_deepspeed_loses_a_rank_is_interrupted_and_ends_the_same(tmp_path):
    """ZeRO-3, its teacher split as well; SIGKILL to one rank, then Ctrl-C, then to the end."""
    runs = copied(tmp_path / "my folder [v1]", STAGE)  # DeepSpeed finds its files by patterns
    made = runs / only(prepared(), STAGE).name
    words = ("fit", STAGE, *TWO, "launch.strategy=deepspeed", "launch.zero_stage=3")

    verb = Verb(runs, *words)
    wait_for_steps(verb, made / "log.txt", 3)
    os.kill(ranks(made)[1], signal.SIGKILL)
    assert verb.wait() == 1 and "rank 1 of 2" in verb.said and "SIGKILL" in verb.said
    assert RunFolder(made).state() == "interrupted"

    verb = Verb(runs, *words)
    wait_for_steps(verb, made / "log.txt", 3)
    verb.send(signal.SIGINT)
    assert verb.wait() == 130 and "saved" in verb.said, verb.said
    assert RunFolder(made).state() == "interrupted"

    verb = Verb(runs, *words)
    assert verb.wait() == 0, verb.said
    assert_same_student(made)
    record = RunFolder(made).read_record()
    assert record["devices"] == 2 and record["counters"]["batches"] == 20, "none twice, none lost"
    assert len(list((made / "checkpoints").iterdir())) == 2, "a link and what it leads to"


def test_torchrun_starts_the_ranks(tmp_path):
    runs = copied(tmp_path, STAGE)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", str(free_port()), "-m", "experiments", "fit", STAGE, *SETTINGS,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *TWO, "--runs", str(runs)], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = only(runs, STAGE)
    assert_same_student(made)
    assert (made / "log.rank1.txt").is_file()


# -- two nodes -------------------------------------------------------------------------------------


def permitted(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def nodes():
    """How to start a command on either of two nodes: network namespaces joined by a cable."""
    names, wires = (
        [f"n{os.getpid()}{end}" for end in "ab"],
        [f"w{os.getpid()}{end}" for end in "ab"],
    )
    setup = [f"ip netns add {name}" for name in names]
    setup += [f"ip link add {wires[0]} type veth peer name {wires[1]}"]
    for number, (name, wire) in enumerate(zip(names, wires, strict=True), 1):
        setup += [
            f"ip link set {wire} netns {name}",
            f"ip -n {name} addr add 10.77.0.{number}/24 dev {wire}",
            f"ip -n {name} link set {wire} up",
            f"ip -n {name} link set lo up",
        ]
    try:
        if all(permitted(*line.split()) for line in setup):
            yield [
                (["ip", "netns", "exec", name], {"GLOO_SOCKET_IFNAME": wire}, "10.77.0.1")
                for name, wire in zip(names, wires, strict=True)
            ]
        else:  # not root: two nodes that share a machine's own network
            yield [([], {"GLOO_SOCKET_IFNAME": "lo"}, "127.0.0.1")] * 2
    finally:
        for name in names:
            permitted("ip", "netns", "del", name)


def started(nodes, runs: Path) -> list[subprocess.Popen]:
    """The same command on both nodes."""
    port, processes = free_port(), []
    for number, (inside, network, address) in enumerate(nodes):
        environment = os.environ | network | {
            "NODE_RANK": str(number), "MASTER_ADDR": address, "MASTER_PORT": str(port),
        }  # fmt: skip
        del environment["OMP_NUM_THREADS"]  # what the recipe says counts
        command = [sys.executable, "-m", "experiments", "fit", STAGE, *SETTINGS]
        command += ["launch.nodes=2", "launch.strategy=deepspeed", "launch.timeout_s=60"]
        processes.append(
            subprocess.Popen(
                [*inside, *command, "--runs", str(runs)], cwd=ROOT, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )
        )  # fmt: skip
    return processes


def test_two_nodes_one_is_lost_and_both_go_on(tmp_path, nodes):
    """DeepSpeed over a (virtual) cable: a node dies, the other ends, the same command continues."""
    runs = copied(tmp_path, STAGE)
    made = runs / only(prepared(), STAGE).name
    first, second = started(nodes, runs)
    while not (made / "checkpoints" / "last.ckpt").exists():
        assert first.poll() is None and second.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(second.pid, signal.SIGKILL)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 1 and "lost another rank" in said
    second.communicate(timeout=10)
    assert RunFolder(made).state() == "interrupted"

    both = started(nodes, runs)
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    assert_same_student(made)
    record = RunFolder(made).read_record()
    assert record["counters"]["batches"] == 20 and record["devices"] == 2
    assert socket.gethostname() in (made / "log.rank1.txt").read_text()
