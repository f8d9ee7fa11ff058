"""Real runs of real recipes at the smallest size, in processes that can be killed.

A process is forked from one that has imported everything but run nothing (the standard library's
forkserver): it is as separate as any other, and starts in a moment.
"""

import atexit
import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

_SMALL = {
    "clip_shape": "[4,4,4,4]", "world.frames": "4", "latents.kept": "4", "text.dim": "8",
    "data.clips": "24", "data.heldout": "16", "data.prompts": "24", "data.reference": "8",
    "data.statistics": "16", "sampling.count": "8", "sampling.batch": "4",
    "sampling.intervals": "2", "stages.pairs.count": "8", "stages.pairs.batch": "4",
    "stages.pairs.intervals": "4", "stages.base.steps": "4", "stages.base.batch": "4",
    "stages.real_score.steps": "4", "stages.real_score.batch": "4", "stages.stage1.steps": "20",
    "stages.stage1.batch": "4", "stages.stage3.steps": "20", "stages.stage3.batch": "4",
    "stages.causal_cd.steps": "20", "stages.causal_cd.batch": "4",
    "stages.causal_cd.intervals": "4", "stages.causal_ode.steps": "4",
    "stages.causal_ode.batch": "4", "launch.panel_every": "0", "launch.checkpoint_every_s": "0",
    "launch.log_every": "1",
}  # fmt: skip
_NETWORK = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 8, "freq_dim": 16, "ffn_dim": 32, "num_layers": 1,
}  # fmt: skip
SETTINGS = [f"{key}={value}" for key, value in _SMALL.items()]
SETTINGS += [f"network.{key}={value}" for key, value in _NETWORK.items()]
# The critic must not start as the real score, or the first step of Stage 3 has no gradient.
SETTINGS.append("critic={recipe: base}")


def _verb(arguments: list[str], output: Path, file_limit: int | None) -> None:
    """The body of a forked process: the command line, its words in a file."""
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if file_limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from experiments.__main__ import main

    sys.exit(main(arguments))


@cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "experiments.__main__",
            "experiments.verbs.fit",
            "experiments.verbs.curate",
            "experiments.verbs.pairs",
        ]
    )
    return context


class Verb:
    """`python -m experiments <words> <settings>` in a process of its own."""

    def __init__(self, runs: Path, *words: str, file_limit: int | None = None) -> None:
        self.output = runs / f"output-{time.monotonic_ns()}.txt"
        runs.mkdir(parents=True, exist_ok=True)
        arguments = [*words[:2], *SETTINGS, *words[2:], "--runs", str(runs)]
        self.process = _context().Process(target=_verb, args=(arguments, self.output, file_limit))
        self.process.start()

    def wait(self, limit_s: float = 120) -> int:
        """The exit status: negative is the signal that ended it."""
        self.process.join(limit_s)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"still running after {limit_s} s: {self.said}")
        return self.process.exitcode

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    @property
    def said(self) -> str:
        return self.output.read_text() if self.output.is_file() else ""


def run(runs: Path, *words: str) -> Path:
    """The finished run that the words mean, or a failure with everything it said."""
    verb = Verb(runs, *words)
    status = verb.wait()
    assert status == 0, verb.said
    return runs / re.findall(r"^(\S+-[0-9a-f]{8}) is done", verb.said, re.M)[-1]


@cache
def prepared() -> Path:
    """Data, base, real score, Stage 1, CD, Stage 3, never interrupted. Made once a session."""
    runs = Path(mkdtemp(prefix="minimal-runs-"))
    atexit.register(shutil.rmtree, runs, ignore_errors=True)
    run(runs, "fit", "stage3_asymmetric_dmd", "--with-needs")
    return runs


def copied(folder: Path, *without: str) -> Path:
    """A copy of the prepared runs in `folder/runs`, without those whose names begin so."""
    return Path(
        shutil.copytree(
            prepared(), folder / "runs",
            ignore=lambda _, names: [n for n in names if n.startswith((*without, "output-"))],
        )
    )  # fmt: skip


def only(runs: Path, recipe: str) -> Path:
    """The one run of a recipe."""
    (found,) = runs.glob(f"{recipe}-????????")
    return found


def finished(runs: Path, recipe: str) -> Path:
    """The one run of a recipe that is done."""
    (found,) = (path.parent for path in runs.glob(f"{recipe}-????????/done.json"))
    return found


def rewritten(source: Path, folder: Path, change=None, **about) -> str:
    """The setting for a copy of a run's shards in `folder`, other in what `change(sample)` does to
    a sample and in its manifest's entries `about`.
    """
    from datamodules.shards.reader import ShardWriter, open_shards

    shards = open_shards(source / "shards")
    made = {"kind", "version", "count", "fields", "shards", "index_sha256"}
    entries = {k: v for k, v in shards.manifest.items() if k not in made} | about
    with ShardWriter(
        folder / "shards", shards.manifest["kind"], about=entries, negative=shards.negative
    ) as writer:
        for sample in shards:
            if change is not None:
                change(sample)
            arrays = {name: sample[name] for name in shards.fields if name in sample}
            writer.write(sample["key"], arrays, sample["info"])
    return f"needs.data={{folder: {folder}}}"


def weights(run: Path) -> str:
    """A hash of what the run hands on."""
    files = sorted((run / "student").rglob("*.safetensors"))
    assert files, f"{run} has no student"
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
