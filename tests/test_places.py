"""Runs and networks whose place has changed, while they are the same."""

import json
import shutil
from pathlib import Path

from experiments.runs.contents import fingerprint
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Library, resolve

FIXTURES = Path(__file__).parent / "fixtures"
LIBRARY = Library(FIXTURES / "recipes", FIXTURES / "scale")


def test_the_path_that_a_config_notes_does_not_count(tmp_path):
    """diffusers writes where a network was loaded from, which a moved folder of runs changes."""
    found = set()
    for place, layers in (("/one/student", 3), ("/two/student", 3), ("/two/student", 4)):
        text = json.dumps({"num_layers": layers, "_name_or_path": place}, indent=2)
        (tmp_path / "config.json").write_text(text)
        found.add(fingerprint(tmp_path))
    assert len(found) == 2
    for text in ("", "[3]", "{"):
        (tmp_path / "config.json").write_text(text)
        found.add(fingerprint(tmp_path))
    assert len(found) == 5 and None not in found


def test_a_run_that_is_a_link_keeps_its_name_and_its_needs(tmp_path):
    """Runs are moved to other disks, with a link in their place."""
    run = resolve("join", "tiny", library=LIBRARY)
    for each in run.closure().values():
        RunFolder.create(each, tmp_path / "runs")
    (tmp_path / "disk").mkdir()
    shutil.move(tmp_path / "runs" / run.name, tmp_path / "disk" / "elsewhere")
    (tmp_path / "runs" / run.name).symlink_to(tmp_path / "disk" / "elsewhere")
    (tmp_path / "again").symlink_to(tmp_path / "runs")
    for runs in ("runs", "again"):
        folder = RunFolder(tmp_path / runs / run.name)
        assert folder.name == run.name and len(folder.closure()) == len(run.closure()) > 1
