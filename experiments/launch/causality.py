"""Bidirectional and causal networks, each refused where the other is asked for.

Both have the same weights by name and shape, so nothing but their origin tells them apart: the
stage that trained them, or the sampler that their causal.json names. Of Wan itself and of other
folders nothing is known, and nothing is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule

from experiments.checkpoints import sampling_config
from experiments.checkpoints.networks import network_folder
from experiments.launch.stages import asked_of_networks, stage_class, stage_of_run
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import RUN_NAME
from lightning_modules.bidirectional import Bidirectional
from lightning_modules.training.stage import Stage


def require_causality(role: str, where: str | Path, causal: bool, by: str) -> None:
    """Refuse a need whose network was trained with the other kind of attention.

    Args:
        role: of the need.
        where: the name of a run, or a path.
        causal: whether it is asked for causal attention: each block sees the earlier ones.
        by: who asks, such as ``pairs.past=causal``.

    Raises:
        ValueError: names the need and the cure.
    """
    trained = is_causal(where)
    if trained is None or trained is causal:
        return
    kinds = ("causal", "the network of Stage 1, 2 or 3"), ("bidirectional", "a base or real score")
    (wanted, cure), (other, _) = kinds if causal else kinds[::-1]
    raise ValueError(
        f"needs.{role}: {where} was trained with {other} attention, and {by} asks it for {wanted};"
        f" give {cure}"
    )


def require_scores(recipe: Mapping[str, Any]) -> None:
    """`require_causality` of the networks beside the student, as the stage's own steps call them.

    A student may be either: that of Stage 1 starts from the base.

    Raises:
        ValueError: names the need and the cure.
    """
    needs = {role: recipe["needs"].get(role) for role in ("teacher", "critic")}
    known = [role for role, where in needs.items() if where and is_causal(where) is not None]
    if not known:
        return
    found, frames = asked_of_networks(recipe), recipe["stage"]["clip_shape"][0]
    for role in known:
        calls = [
            call
            for cases in found.steps.values()
            for name, made in cases[0].calls.items()
            for call in made
            if found.networks[name].like == role
        ]
        if calls:
            causal = any((call.frames, call.seen) != (frames, frames**2) for call in calls)
            require_causality(role, needs[role], causal, stage_class(recipe).__name__)


def is_causal(where: str | Path) -> bool | None:
    """Whether a network was trained with causal attention; None if nothing tells.

    Of a run that may not be there yet the stage of its recipe says it, by name.
    """
    if RUN_NAME.fullmatch(str(where)):
        kind = stage_of_run(str(where))
        return None if kind is None else _trains_causal(kind)
    home = Path(where)
    if not home.is_dir():
        return None
    run = next((path for path in (home, home.parent) if (path / "recipe.yaml").is_file()), None)
    if run is not None:
        stage = RunFolder(run).recipe.get("stage", {})
        return _trains_causal(stage_class({"stage": stage})) if stage else None
    sampler = sampling_config.read(network_folder(home)).get("sampling", {}).get("sampler")
    return None if sampler is None else sampler != "bidirectional_ode"


def _trains_causal(kind: type[LightningModule]) -> bool | None:
    """Whether a stage trains a causal network; None of a stage without one."""
    return not issubclass(kind, Bidirectional) if issubclass(kind, Stage) else None
