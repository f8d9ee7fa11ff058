"""A table is refused if its scores do not belong together, or if it is not described."""

import pytest
from synthetic_sweep import make_sweep, table_of

from sweeps.plan.graph import Sweep
from sweeps.report.layout import load_layout
from sweeps.report.results import read_scores


def test_scores_by_different_calibrations_are_refused(tmp_path):
    sweep = make_sweep(tmp_path, clips=False)
    other = sweep.cells[3].runs["stage2"].name
    path = tmp_path / other / "scores.jsonl"
    path.write_text(path.read_text().replace("1234567890abcdef", "fedcba0987654321"))
    with pytest.raises(ValueError, match=f"different calibrations.*{other} .fedcba0987654321"):
        table_of(sweep, tmp_path)


def test_mixed_kinds_in_a_column_are_refused(tmp_path):
    sweep = make_sweep(tmp_path, clips=False)
    path = tmp_path / sweep.cells[0].runs["stage3"].name / "scores.jsonl"
    path.write_text(path.read_text().replace('"proxy"', '"exact"'))
    with pytest.raises(ValueError, match="World Total.*exact, proxy"):
        table_of(sweep, tmp_path)


def test_a_column_ranked_against_its_metric_is_refused(tmp_path):
    sweep = make_sweep(tmp_path, clips=False)
    path = tmp_path / sweep.cells[0].runs["stage3"].name / "scores.jsonl"
    path.write_text(path.read_text().replace("true", "false"))
    with pytest.raises(ValueError, match="total is better higher"):
        table_of(sweep, tmp_path)


@pytest.mark.parametrize("line", ["{", '{"metric": "a"}', '{"metric": "a", "value": "x", "n": 1}'])
def test_a_broken_score_file_is_named(tmp_path, line):
    path = tmp_path / "scores.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="scores.jsonl"):
        read_scores(path)


def test_a_table_that_is_not_there_and_unknown_keys_of_one_are_refused():
    for table, message in (("ablatoin", "did you mean 'ablation'"),
                           ({"block": "few_steps"}, "did you mean 'blocks'")):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_layout(Sweep("mine", "tiny", [0], [], "", table))
