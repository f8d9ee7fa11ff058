"""Commands without a recipe and a run folder: inputs and outputs are arguments.

Only argparse is imported before one of them starts.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from experiments.bench import command as bench
from experiments.lineage import command as lineage
from experiments.live import command as live
from experiments.runs.folder import home_path as path


@dataclass(frozen=True)
class Tool:
    """A command: its help, its arguments, and the function that runs it."""

    what: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _declare_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=path,
        help=".pt, .pth or .safetensors of CausVid, Self Forcing, Causal Forcing, Causal"
        " Forcing++ or Wan itself; or a folder of Wan's own safetensors",
    )
    parser.add_argument("--as", dest="folder", type=path, required=True, help="the new folder")
    kept = parser.add_mutually_exclusive_group()
    for kind, what in (
        ("ema", "the average, such as generator_ema (the default, where there is one)"),
        ("raw", "the student itself, such as generator or model"),
        ("critic", "the fake score"),
    ):
        kept.add_argument(f"--{kind}", dest="kept", action="store_const", const=kind, help=what)
    kept.add_argument("--key", help="the key of the weights in the file, where these do not tell")
    parser.add_argument(
        "--config",
        type=path,
        help="a folder with config.json; 1.3B and 14B are told by shapes",
    )


def _import(chosen: argparse.Namespace) -> None:
    from experiments.checkpoints.convert import import_checkpoint

    import_checkpoint(chosen.file, chosen.folder, chosen.kept, chosen.config, chosen.key)


def _declare_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", type=path, help="a run that trained a network, or a folder of one")
    parser.add_argument("--to", dest="folder", type=path, required=True, help="the new folder")
    parser.add_argument(
        "--original", action="store_true", help="also write Wan's own names, into FOLDER/original"
    )


def _export(chosen: argparse.Namespace) -> None:
    from experiments.checkpoints.convert import export_network

    export_network(chosen.what, chosen.folder, chosen.original)


def _declare_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, help="a finished score run whose videos VBench judged")
    parser.add_argument(
        "--motion",
        type=path,
        metavar="RUN",
        help="a score run of the same student on other prompts (the paper: 100 of actions):"
        " Dynamic Degree and VisionReward are of these",
    )


def _results(chosen: argparse.Namespace) -> None:
    from experiments.worlds.wan.results import add_results

    add_results(chosen.run, chosen.motion)


def _declare_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=path, help="one prompt a line, such as text_align.txt")
    parser.add_argument("--to", dest="folder", type=path, required=True, help="the new folder")


def _prompts(chosen: argparse.Namespace) -> None:
    from experiments.worlds.wan.vbench_prompts import write_lists

    write_lists(chosen.file, chosen.folder)


def _declare_join(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, help="the folder of a run that makes shards")
    parser.add_argument("--of", type=int, help=argparse.SUPPRESS)  # shall not outlive this process


def _join(chosen: argparse.Namespace) -> None:
    if chosen.of is not None:  # ended by the process that it helps, which says why
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from experiments.launch.shard_workers import join
    from experiments.runs.folder import RunFolder

    join(RunFolder(chosen.run), chosen.of)


TOOLS = {
    "join": Tool("help another process make the shards of its run", _declare_join, _join),
    "import": Tool("turn a published checkpoint into a diffusers folder", _declare_import, _import),
    "export": Tool("write a network where stock diffusers loads it", _declare_export, _export),
    "prompts": Tool(
        "turn a list of prompts into a folder to sample and score from", _declare_prompts, _prompts
    ),
    "results": Tool(
        "read what VBench and VisionReward wrote into a run's scores", _declare_results, _results
    ),
    "explain": Tool(
        "say by which runs, code, data and seeds a result was made", lineage.declare, lineage.run
    ),
    "generate": Tool("write a video of a prompt", live.declare_generate, live.generate),
    "live": Tool("show a student at work in the browser", live.declare_live, live.live),
    "bench": Tool("measure speed and memory, beside a roofline", bench.declare, bench.run),
}
