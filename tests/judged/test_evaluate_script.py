"""evaluate.sh, with a stub instead of VBench."""

import os
import subprocess

from vbench_files import MEANS, PROMPTS, add, judge, score_run, scores

from experiments.worlds.wan import vbench

FAKE = """#!/bin/sh
# -c CODE, or judge.py DIMENSION --wording W --device D --output TO [--others]
[ "$1" = -c ] && echo 0.1.5 && exit 0
echo "$*" >> calls.txt
[ "$2" = color ] && [ ! -e mended ] && exit 1
mkdir -p "$8" && cp {shelf}/"$2"/* "$8"
"""


def test_evaluate_sh_judges_what_is_not_judged_yet(sweep, tmp_path):
    """With a program in the place of VBench's Python that writes its files."""
    run = score_run(sweep.cells[0].runs["stage3"], tmp_path / "runs", PROMPTS).path
    here, tools, shelf = run / "vbench", tmp_path / "bin", tmp_path / "shelf"
    wanted = ("scene", "color", "human_action")
    for dimension in (*wanted, "dynamic_degree"):
        judge(run, dimension, MEANS[dimension])
    (here / "results").rename(shelf)
    script = vbench._SCRIPT.format(dimensions=" ".join(wanted), wording="short")
    (here / "evaluate.sh").write_text(script)
    tools.mkdir()
    (tools / "python").write_text(FAKE.format(shelf=shelf))
    (tools / "python").chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}

    def evaluate(*words):
        command = ["sh", str(here / "evaluate.sh"), *words]
        done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
        return done, (here / "calls.txt").read_text().splitlines()

    def call(dimension):
        to = f"--device cuda --output results/{dimension}"
        return f"judge.py {dimension} --wording short {to}"

    done, calls = evaluate()
    assert done.returncode == 1 and "no results: color" in done.stdout, done.stderr
    assert calls == [call(dimension) for dimension in wanted]
    (here / "mended").touch()
    done, calls = evaluate()
    assert done.returncode == 0 and calls[3:] == [call("color")], done.stderr
    assert add(run) == 0
    assert scores(run)["vbench.color"]["backend"]["version"] == "0.1.5"
    done, calls = evaluate("motion")
    assert done.returncode == 0 and calls[4:] == [f"{call('dynamic_degree')} --others"]
