"""Executing a run folder: lock, log, verb, record, done.

Rank 0 does all this; the other ranks only run the verb and keep a log of their own. A process that
was not started as a rank of a fit launches the ranks (``launcher.py``). Where shards are made
together, a rank that finds no shard left to begin takes the place of a rank 0 that is lost.

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
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from types import ModuleType

from datamodules.signals import STOP
from experiments.launch.ranks.launcher import execute_ranks, lost_peer
from experiments.launch.ranks.topology import SHARDED, Topology, ranks_here, topology_of
from experiments.launch.run_log import LOG_ONLY, logged
from experiments.launch.run_record import recorded
from experiments.runs.errors import report, told
from experiments.runs.folder import Busy, RunFolder
from experiments.runs.unchanged import check_contents

log = logging.getLogger(__name__)
POLL_S = 0.5
LEADERLESS_S = 30.0  # longer than rank 0 takes to start


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
    try:
        if ranks := ranks_here(folder.recipe):
            return execute_ranks(folder, ranks, progress, package)
        topology = topology_of(folder.recipe)
        if not topology.rank:
            return _lead(folder, topology, progress, package)
        _join(folder, topology, package)
        if folder.recipe["verb"] in SHARDED:
            _replace_lost_leader(folder, topology, package)
        return True
    except KeyboardInterrupt as stop:  # without a message: stopped at once
        raise KeyboardInterrupt(str(stop) or saved(folder)) from stop


def _lead(
    folder: RunFolder,
    topology: Topology,
    progress: Callable[[int, int, str], None] | None,
    package: str,
) -> bool:
    """Execute the run as rank 0; False if another process has finished it meanwhile."""
    folder.on_progress = progress
    with folder.lock():
        if folder.done:  # the previous holder finished it
            return False
        folder.clear_failure()
        # Imported before seeding, so that the first run of a process is like any other.
        with logged(folder.path / "log.txt"), _failing(folder):
            log.info("%s starts (process %d)", folder.name, os.getpid())
            check_contents(folder)
            module = verb_module(folder.recipe["verb"], package)
        # Once more: libraries imported since have loggers that do not propagate.
        log_file = logged(folder.path / "log.txt")
        with log_file, _failing(folder), _isolated(folder.recipe["seed"]), recorded(folder):
            os.environ.update(topology.environment())
            module.check(folder.recipe)
            module.run(folder.recipe, folder)
        folder.mark_done()
    return True


def _join(folder: RunFolder, topology: Topology, package: str) -> None:
    """Run the verb as a rank other than 0."""
    path = folder.path / f"log.rank{topology.rank}.txt"
    with logged(path), _failing(folder):
        log.info("%s: %s starts (process %d)", folder.name, topology, os.getpid())
        module = verb_module(folder.recipe["verb"], package)
    with logged(path), _failing(folder), _isolated(folder.recipe["seed"]):
        os.environ.update(topology.environment())
        module.check(folder.recipe)
        module.run(folder.recipe, folder)


def _replace_lost_leader(folder: RunFolder, topology: Topology, package: str) -> None:
    """Wait for the end of the run; lead it when nobody has done so for ``LEADERLESS_S``."""
    led = time.monotonic()
    while not (folder.done or folder.failure()):
        if folder.running():
            led = time.monotonic()
        elif time.monotonic() - led > LEADERLESS_S:
            log.info("%s: %s leads now", folder.name, topology)
            with suppress(Busy):  # another rank was faster
                _lead(folder, replace(topology, rank=0), None, package)
        time.sleep(POLL_S)


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
        log.info("%s", saved(folder), extra=LOG_ONLY)  # whoever hears the interrupt says it
        raise KeyboardInterrupt(saved(folder)) from stop
    except BaseException as error:
        log.error("%s failed", folder.name, exc_info=error)
        # Losing another rank is no failure of this one; the other's may be written already.
        if not (lost_peer(error) or folder.failure()):
            try:
                folder.mark_failed(report(error))
            except OSError as full:
                log.warning("failed.txt is not written: %s", told(full))
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
def _isolated(seed: int) -> Iterator[None]:
    """Sets the same process-wide state for every run, and restores the old one at its end."""
    with ExitStack() as stack:
        environment, directory = dict(os.environ), os.getcwd()
        stack.callback(_restore_environment, environment)
        stack.callback(os.chdir, directory)
        stack.enter_context(warnings.catch_warnings())
        if threading.current_thread() is threading.main_thread():
            for number in STOP:
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
