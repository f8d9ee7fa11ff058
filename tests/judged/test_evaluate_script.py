"""evaluate.sh, with a stub instead of VBench."""

import os
import subprocess

from vbench_files import MEANS, PROMPTS, add, judge, score_run, scores

from experiments.worlds.wan import vbench

FAKE = """#!/bin/sh
# evaluate --videos_path videos --dimension D --mode M --output_path TO
echo "$*" >> calls.txt
[ "$5" = color ] && [ ! -e mended ] && exit 0
mkdir -p "$9" && cp {shelf}/"$5"/* "$9"
"""


def test_evaluate_sh_judges_what_is_not_judged_yet(sweep, tmp_path):
    """With a program in VBench's place that writes its files and, like it, always ends with 0."""
    run = score_run(sweep.cells[0].runs["stage3"], tmp_path / "runs", PROMPTS).path
    here, tools, shelf = run / "vbench", tmp_path / "bin", tmp_path / "shelf"
    wanted = ("scene", "color", "human_action")
    for dimension in (*wanted, "dynamic_degree"):
        judge(run, dimension, MEANS[dimension])
    (here / "results").rename(shelf)
    (here / "evaluate.sh").write_text(vbench._SCRIPT.format(dimensions=" ".join(wanted)))
    tools.mkdir()
    for name, text in (
        ("vbench", FAKE.format(shelf=shelf)),
        ("python", "#!/bin/sh\necho 0.1.5\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}

    def evaluate(*words):
        command = ["sh", str(here / "evaluate.sh"), *words]
        done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
        return done, (here / "calls.txt").read_text().splitlines()

    def call(dimension, mode="vbench_standard"):
        to = f"--mode {mode} --output_path results/{dimension}"
        return f"evaluate --videos_path videos --dimension {dimension} {to}"

    done, calls = evaluate()
    assert done.returncode == 1 and "no results: color" in done.stdout, done.stderr
    assert calls == [call(dimension) for dimension in wanted]
    (here / "mended").touch()
    done, calls = evaluate()
    assert done.returncode == 0 and calls[3:] == [call("color")], done.stderr
    assert add(run) == 0
    assert scores(run)["vbench.color"]["backend"]["version"] == "0.1.5"
    done, calls = evaluate("motion")
    assert done.returncode == 0 and calls[4:] == [call("dynamic_degree", "custom_input")]
