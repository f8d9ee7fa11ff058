"""Settings are bound to signatures: names, types and completeness, with the key in the message."""

from pathlib import Path

import pytest

from experiments.runs.signature import bind


class Stage:
    def __init__(
        self,
        network: object,
        rate: float,
        blocks: str | list[int],
        betas: tuple[float, float],
        steps: int = 3,
        where: Path | None = None,
    ) -> None:
        raise AssertionError("binding must not build anything")


def curate(source: str, counts: dict[str, int]) -> None: ...


GOOD = {"rate": 1, "blocks": [1, 3], "betas": [0.9, 0.99]}


def test_values_are_converted():
    bound = bind(Stage, GOOD | {"where": "/tmp/x"}, {"network"})
    assert bound == {
        "rate": 1.0, "blocks": [1, 3], "betas": (0.9, 0.99), "where": Path("/tmp/x")
    }  # fmt: skip
    assert isinstance(bound["rate"], float)
    assert bind(curate, {"source": "digits", "counts": {"train": 2}})["counts"] == {"train": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bloks": "x"}, r"stage.bloks: Stage takes no such setting; did you mean 'blocks'"),
        ({"rate": "fast"}, r"stage.rate: 'fast' must be a number"),
        ({"steps": 2.5}, r"stage.steps: 2.5 must be a whole number"),
        ({"steps": True}, r"stage.steps: True must be a whole number"),
        ({"rate": None}, r"stage.rate: None must be a number"),
        ({"betas": [0.9]}, r"stage.betas"),
        ({"network": 1}, r"stage.network: Stage gets it from the run"),
    ],
)
def test_wrong_settings_name_their_key(change, message):
    with pytest.raises(ValueError, match=message):
        bind(Stage, GOOD | change, {"network"}, "stage")


def test_a_missing_setting_is_named():
    with pytest.raises(ValueError, match="stage.blocks is missing"):
        bind(Stage, {"rate": 1.0, "betas": [0, 1]}, {"network"}, "stage")
    with pytest.raises(ValueError, match="source is missing"):
        bind(curate, {"counts": {}})
