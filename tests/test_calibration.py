"""The constants of World Quality and World Reward, as a run has stored them."""

import json

import pytest

from experiments.worlds.digits import calibration


def test_constants_are_read_whole_or_refused(tmp_path):
    file = tmp_path / calibration.FILE
    stored = {"distance": {"floor": 85.0, "ceiling": 6.7}, "bounds": {"jump": 3.9}}
    made_from = {"made_from": {"probe": "p", "reference": "r"}}
    file.write_text(json.dumps(stored | made_from))
    found = calibration.constants_of(tmp_path, "p", "r")
    assert found["hash"] == calibration.digest(stored) and found["distance"] == stored["distance"]
    for wrong in ({"floor": 1.0, "ceiling": 1.0}, {"floor": 1.0}, {"floor": 1.0, "ceiling": 0.0}):
        file.write_text(json.dumps(stored | made_from | {"distance": wrong}))
        with pytest.raises(ValueError, match="needs 0 < ceiling < floor.*data.refer"):
            calibration.constants_of(tmp_path, "p", "r")
    with pytest.raises(FileNotFoundError, match="needs.calibration must be a run"):
        calibration.constants_of(tmp_path / "none", "p", "r")
