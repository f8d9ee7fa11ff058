"""Executing a run folder: lock, log, verb, record, done.

Rank 0 of a fit does all this; the other ranks only run the verb and keep a log of their own. A
process that was not started as a rank launches the ranks (``launcher.py``).

The same function serves the command line and the workers of a sweep. A worker executes many runs,
so process-wide state (random states, torch's switches, logging, signals, environment, working
directory) is set at a run's start and restored at its end: results do not depend on the process.

``kill -USR1`` makes a process dump the stack traces of all its threads to stderr while it executes
a run or a rank, or launches ranks: to find out where a run hangs.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from types import ModuleType

from experiments.launch.ranks.launcher import execute_ranks, lost_peer
from experiments.launch.ranks.topology import Topology, ranks_here, topology_of, wanted
from experiments.runs.folder import RunFolder
from experiments.runs.provenance import revision, versions
from experiments.runs.recipe import config_hash

HEARTBEAT_S = 5.0
log = logging.getLogger(__name__)


def verb_module(verb: str, package: str = "experiments.verbs") -> ModuleType:
    """The module of a verb: ``check(recipe)`` and ``run(recipe, folder)``."""
    return importlib.import_module(f"{package}.{verb}")


def execute(
    folder: RunFolder,
    progress: Callable[[int, int, str], None] | None = None,
    package: str = "experiments.verbs",
) -> bool:
    """Execute or resume a run; False if it was done already.

    ``package`` has the verb's module. Raises Busy if another process works in the folder,
    KeyboardInterrupt if the run was asked to stop (it can be resumed), and any error of the verb,
    after writing failed.txt.
    """
    if folder.done:
        return False
    with _stack_traces():
        return _execute(folder, progress, package)


def _execute(
    folder: RunFolder, progress: Callable[[int, int, str], None] | None, package: str
) -> bool:
    if ranks := ranks_here(folder.recipe):
        try:
            return execute_ranks(folder, ranks, progress, package)
        except KeyboardInterrupt as stop:  # without a message: stopped at once
            raise KeyboardInterrupt(str(stop) or saved(folder)) from stop
    topology = topology_of(folder.recipe)
    if topology.rank:
        _join(folder, topology, package)
        return True
    folder.on_progress = progress
    with folder.lock():
        if folder.done:  # the previous holder finished it
            return False
        folder.clear_failure()
        # Imported before seeding, so that the first run of a process is like any other.
        with _logged(folder.path / "log.txt"), _failing(folder):
            log.info("%s starts (process %d)", folder.name, os.getpid())
            module = verb_module(folder.recipe["verb"], package)
        # Once more: libraries imported since have loggers that do not propagate.
        logged = _logged(folder.path / "log.txt")
        with logged, _failing(folder), _isolated(folder.recipe["seed"]), _recorded(folder):
            os.environ.update(topology.environment())
            module.check(folder.recipe)
            module.run(folder.recipe, folder)
        folder.mark_done()
    return True


def _join(folder: RunFolder, topology: Topology, package: str) -> None:
    """Run the verb as a rank other than 0."""
    path = folder.path / f"log.rank{topology.rank}.txt"
    with _logged(path), _failing(folder):
        log.info("%s: %s starts (process %d)", folder.name, topology, os.getpid())
        module = verb_module(folder.recipe["verb"], package)
    with _logged(path), _failing(folder), _isolated(folder.recipe["seed"]):
        os.environ.update(topology.environment())
        module.check(folder.recipe)
        module.run(folder.recipe, folder)


@contextmanager
def _stack_traces() -> Iterator[None]:
    """Dump stack traces to stderr (file descriptor 2) on SIGUSR1."""
    faulthandler.register(signal.SIGUSR1, file=2)
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGUSR1)


@contextmanager
def _failing(folder: RunFolder) -> Iterator[None]:
    """Writes failed.txt on an error; logs what an interrupted run has saved."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the first into the second
        log.info("%s", saved(folder))
        raise KeyboardInterrupt(saved(folder)) from stop
    except BaseException as error:
        log.error("%s failed", folder.name, exc_info=error)
        # Losing another rank is no failure of this one; the other's may be written already.
        if not (lost_peer(error) or folder.failure()):
            folder.mark_failed("".join(traceback.format_exception(error)))
        raise


def saved(folder: RunFolder) -> str:
    """What an interrupted run has saved and how to resume it."""
    last = folder.path / "checkpoints" / "last.ckpt"
    if last.exists():
        age = time.time() - last.stat().st_mtime
        kept = f"saved {age:.0f} s ago in {last}"
    elif shards := len(list((folder.path / "shards").glob("*.tar"))):
        kept = f"{shards} finished shards are kept"
    else:
        kept = "no checkpoint yet, it will start again"
    return f"{folder.name} interrupted: {kept}. Resume with the same command, or: {folder.command}"


@contextmanager
def _recorded(folder: RunFolder) -> Iterator[None]:
    """Keeps record.json; times add up over interruptions, even if the process is killed."""
    before = folder.read_record()
    launch = folder.recipe.get("launch", {})
    devices = prod(wanted(folder.recipe))
    started = time.time()
    clock = time.perf_counter()
    _reset_peak_memory()
    folder.record(
        {
            "started": before.get("started", started),
            "scale": launch.get("scale"),
            "recipe": folder.recipe["recipe"],
            "verb": folder.recipe["verb"],
            "code": revision(),
            "config_hash": config_hash(folder.recipe),
            "versions": versions(),
            "devices": devices,
        }
    )

    def update() -> None:
        wall = before.get("wall_s", 0.0) + time.perf_counter() - clock
        peak = max(before.get("peak_memory_bytes", 0), _peak_memory())
        times = {"wall_s": wall, "device_s": wall * devices, "ended": time.time()}
        folder.record(times | {"peak_memory_bytes": peak, "progress": folder.reached})

    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            update()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        update()
        folder.record({"device": _device(), "bytes_written": folder.size()})


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Appends all log messages to a file, including those of loggers that do not propagate."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    before = {"": (root.level, root.handlers[:])}
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (not logger.propagate or logger.handlers):
            before[name] = (logger.level, logger.handlers[:])
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    for name in before:
        if not name or not logging.getLogger(name).propagate:
            logging.getLogger(name).addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for name, (level, handlers) in before.items():
            logging.getLogger(name).setLevel(level)
            logging.getLogger(name).handlers[:] = handlers
        handler.close()


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Sets the same process-wide state for every run, and restores the old one at its end."""
    with ExitStack() as stack:
        environment, directory = dict(os.environ), os.getcwd()
        stack.callback(_restore_environment, environment)
        stack.callback(os.chdir, directory)
        stack.enter_context(warnings.catch_warnings())
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.getsignal(number))
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed % 2**32)
        if "torch" in sys.modules:
            _isolate_torch(sys.modules["torch"], seed, stack)
        stack.callback(gc.unfreeze)
        stack.callback(gc.collect)  # frozen libraries are skipped: they take a third of a second
        gc.freeze()
        yield


def _isolate_torch(torch: ModuleType, seed: int, stack: ExitStack) -> None:
    # Runs last: memory in this process's cache is not available to the next run's ranks.
    stack.callback(lambda: torch.cuda.is_initialized() and torch.cuda.empty_cache())
    stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    stack.callback(torch.use_deterministic_algorithms, deterministic, warn_only=warn_only)
    precision = torch.get_float32_matmul_precision()
    stack.callback(torch.set_float32_matmul_precision, precision)
    torch.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _restore_environment(old: dict[str, str]) -> None:
    for name in set(os.environ) - set(old):
        del os.environ[name]
    os.environ.update(old)


def _reset_peak_memory() -> None:
    """Reset the peak of a worker's earlier runs (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        log.debug("peak memory cannot be reset on this system")


def _peak_memory() -> int:
    """Bytes: the GPU's peak where one is used, else the process's."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "cpu"
