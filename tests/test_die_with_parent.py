"""Real processes: a child goes when its parent is killed."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

CHILD = """
import os, time
from experiments.launch.ranks.die_with_parent import die_with_parent as end
{}
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
@pytest.mark.parametrize("call", ["end()", "end(os.getppid())"])
def test_it_ends_with_its_parent(call):
    command = [sys.executable, "-c", PARENT, CHILD.format(call)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    child.wait(timeout=10)


def test_an_orphan_ends_at_once():
    orphan = subprocess.run([sys.executable, "-c", CHILD.format("end(1 << 30)")], timeout=30)
    assert orphan.returncode == 1
