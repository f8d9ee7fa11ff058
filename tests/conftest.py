"""One torch thread and one seed for every test, and no deadlines.

Two threads on a contended two-core machine make small tests many times slower, and a result may
depend on how a sum is split over threads. OpenMP reads its setting when torch is first imported, so
the environment is set here, before any test module is collected.
"""

import gc
import os
import random
import signal
import sys

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and tests send it

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# How long an example takes says how busy the machine is.
settings.register_profile("shared_machine", deadline=None)
settings.load_profile("shared_machine")


def pytest_collection_modifyitems(items):
    """Files with slow tests first, those that start a Slurm before all: none is left alone last."""
    slow, slurm = (
        {item.path for item in items if item.get_closest_marker(name)} for name in ("slow", "slurm")
    )
    items.sort(key=lambda item: (item.path not in slurm, item.path not in slow))


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    """Seeds only what is loaded: a test of the command line must not pay for torch."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory):
    """A tiny Wan 2.1 pipeline of a student's size; read only. See tests/tiny_wan.py."""
    from tiny_wan import save_pipeline

    return save_pipeline(tmp_path_factory.mktemp("wan") / "student")


@pytest.fixture(scope="session")
def wan_score_folder(tmp_path_factory):
    """A larger transformer beside the same VAE and text encoder; read only."""
    from tiny_wan import SCORE, save_pipeline

    return save_pipeline(tmp_path_factory.mktemp("wan") / "score", SCORE, seed=1)


@pytest.fixture
def use(tmp_path, wan_folder, capsys):
    """The command line, importing with the tiny network's config; returns (status, stderr)."""

    from experiments.__main__ import main

    def call(*words):
        config = ["--config", str(wan_folder / "transformer")] if words[0] == "import" else []
        return main([*map(str, words), *config]), capsys.readouterr().err

    return call


@pytest.fixture
def nothing_left_of_other_tests():
    """What earlier tests have left is not among the objects of the garbage collector meanwhile."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
