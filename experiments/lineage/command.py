"""The command line of ``explain``."""

from __future__ import annotations

import argparse
import json

from experiments.runs.folder import home_path, runs_dir


def declare(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m experiments explain``."""
    parser.add_argument(
        "path",
        type=home_path,
        help="a run folder or anything in it: a checkpoint, weights, an mp4, a shard, a clip of it"
        " (shards/000000.tar/KEY); or a table's records.csv",
    )
    parser.add_argument(
        "labels",
        nargs="*",
        metavar="column=value",
        help="of a records.csv: the cell, such as init=causal_cd few_steps=1 metric=world.total",
    )
    parser.add_argument("--runs", help="where the runs of a records.csv live (RUNS_DIR, ./runs)")
    parser.add_argument("--json", action="store_true", help="everything, for programs")


def run(chosen: argparse.Namespace) -> None:
    """Print by which runs, code, data, devices and seeds a result was made, and what it cost.

    Raises:
        FileNotFoundError: nothing lies there.
        ValueError: it is damaged, or in no run folder; names the file and the cure.
    """
    from experiments.lineage.ancestry import ancestry
    from experiments.lineage.subject import subject_of
    from experiments.lineage.tree import print_tree

    subject = subject_of(chosen.path, chosen.labels, runs_dir(chosen.runs))
    runs, roots = ancestry(subject.runs), [folder.name for folder in subject.runs]
    if chosen.json:
        found = {"what": subject.what, **subject.facts, "made_by": roots, "runs": runs}
        print(json.dumps(found, indent=1))
    else:
        print_tree(subject.what, subject.facts, roots, runs)
