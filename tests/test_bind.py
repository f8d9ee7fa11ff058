"""Settings are bound to signatures: names, types and completeness, with the key in the message."""

from pathlib import Path
from typing import Literal

import pytest

from experiments.runs.signature import bind, in_words
from lightning_modules.ranges import Betas, Decay, PositiveInt


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


def test_texts_are_no_numbers_and_numbers_no_text():
    for settings in (
        {"rate": "0.5"},
        {"rate": float("nan")},
        {"betas": ["0.9", 0.99]},
        {"steps": 3.0},
    ):
        with pytest.raises(ValueError, match=f"stage.{next(iter(settings))}: .* must be"):
            bind(Stage, GOOD | settings, {"network"}, "stage")
    with pytest.raises(ValueError, match="source: 1.1 must be text; put it in quotes"):
        bind(curate, {"source": 1.1, "counts": {}})
    with pytest.raises(ValueError, match="counts: .* must be a section of settings"):
        bind(curate, {"source": "digits", "counts": {"train": "2"}})


def test_what_is_no_section_is_refused():
    with pytest.raises(ValueError, match="fit: 3 is no section of settings"):
        bind(Stage, 3, section="fit")


def test_words_of_types():
    assert in_words(PositiveInt | None) == "a whole number at least 1, or null"
    assert in_words(Betas) == "a list of 2, each a number at least 0 and below 1"
    assert in_words(tuple[int, str]) == "a list of 2, each a whole number; text"
    assert in_words(Literal["euler", "heun"]) == "one of euler, heun"
    assert in_words(Decay, 1.0) == "at least 0 and below 1"
    assert in_words(Decay, "1") == "a number at least 0 and below 1"
    assert in_words(Path) == "a valid pathlib.Path"


def test_names_for_type_checkers_only_need_not_exist():
    def own(network: "Elsewhere", rate: "Positive"): ...  # noqa: F821

    assert bind(own, {"rate": 2}, {"network"}) == {"rate": 2}


def test_a_missing_setting_is_named():
    with pytest.raises(ValueError, match="stage.blocks is missing"):
        bind(Stage, {"rate": 1.0, "betas": [0, 1]}, {"network"}, "stage")
    with pytest.raises(ValueError, match="source is missing"):
        bind(curate, {"counts": {}})
