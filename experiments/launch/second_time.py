"""Networks of two times (``networks/wan/two_time.py``), refused where the second is ignored.

Called without it such a network answers with the mean velocity to data, not with the velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule

from experiments.checkpoints.networks import ROLES, class_of, network_class, network_folder
from experiments.launch.stages import stage_of_run
from experiments.runs.recipe import RUN_NAME

Require = Callable[[str, str | Path, bool], None]
"""What a user of networks asks: role, where the network comes from, whether it has two times."""


def require_one_time(
    kind: type[LightningModule], role: str, where: str | Path, two_times: bool
) -> None:
    """Refuse a network of two times where a stage would ask it for a velocity at one.

    Args:
        kind: the stage.
        role: of the network.
        where: the network comes from.
        two_times: whether it has two.

    Raises:
        ValueError: names the need and the cure.
    """
    if two_times and not (role == "student" and kind.takes_two_times):
        raise ValueError(
            f"needs.{role}: {where} has a second time, which {kind.__name__} ignores: it would take"
            " the mean velocity to data for the velocity; give it the network of Stage 1 or of"
            " another Stage 2, or hand this one, as student, to distribution matching"
        )


def require_velocity(role: str, where: str | Path, two_times: bool) -> None:
    """Refuse a network of two times where an ODE is solved.

    Args:
        role: of the network: a ``teacher`` whose trajectories are stored, or a sampled ``student``.
        where: the network comes from.
        two_times: whether it has two.

    Raises:
        ValueError: names the need and the cure.
    """
    if two_times:
        instead = ", or sample this one with sampler=few_steps" if role == "student" else ""
        raise ValueError(
            f"needs.{role}: {where} has a second time and answers with the mean velocity to data,"
            " not with the velocity that an ODE needs; give a base model or the network of Stage 1"
            f"{instead}"
        )


def require_needs_of_one_time(recipe: Mapping[str, Any], require: Require) -> None:
    """Ask ``require`` of each network that the recipe needs, before any run starts.

    Raises:
        ValueError: as ``require`` does.
    """
    for role in ROLES:
        if where := recipe["needs"].get(role):
            require(role, where, _promises_two_times(where))


def require_section_of_one_time(kind: type[LightningModule], section: Mapping[str, Any]) -> None:
    """Refuse a section ``network`` of two times for a stage that ignores the second.

    Raises:
        ValueError: names the key and the cure.
    """
    made = network_class(section)
    if getattr(made, "two_times", False) and not kind.takes_two_times:
        raise ValueError(
            f"network.class: {made.__name__} has a second time, which {kind.__name__} ignores;"
            " leave the key out: a stage that trains the second time adds it by itself"
        )


def has_two_times(where: str | Path) -> bool:
    """Whether a network has a second time, by its config.json; no weight is loaded.

    Raises:
        FileNotFoundError: there is no network.
    """
    return getattr(class_of(network_folder(where)), "two_times", False)


def _promises_two_times(where: str) -> bool:
    """`has_two_times` of a need that may not be there yet.

    Of a run the stage of its recipe says it, by name. A student of two times that another stage
    takes and hands on, and a hub id, are known only once they are there.
    """
    if not RUN_NAME.fullmatch(where):
        return Path(where).is_dir() and has_two_times(where)
    return getattr(stage_of_run(where), "two_times", False)
