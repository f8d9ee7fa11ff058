"""The stage of a recipe: its class, what it is given, and what it asks of its networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import nn

from experiments.checkpoints.networks import ROLES
from experiments.runs.config import nearest
from experiments.runs.files import load_recipe
from experiments.runs.recipe import Library, recipes
from experiments.runs.signature import bind, parameters_of
from lightning_modules import stage, stages
from lightning_modules.networks.tally import Tally
from lightning_modules.training.dry_run import DryRun, dry_run

EXAMPLE_TIMES = [1.0, 0.75, 0.5, 0.25]  # of a trajectory's states, where no data says them


def stage_class(recipe: Mapping[str, Any]) -> type[LightningModule]:
    """The class that ``stage.class`` names.

    Raises:
        ValueError: there is none of that name; says the nearest.
    """
    name = recipe.get("stage", {}).get("class")
    try:
        return stage(name)
    except LookupError as error:
        raise ValueError(
            f"stage.class: {error}{nearest(str(name), stages())} (there are:"
            f" {', '.join(stages())}; one of your own: package.module.Class)"
        ) from None


def stage_of_run(name: str) -> type[LightningModule] | None:
    """The stage of a run that may not be there yet, by its recipe; None if it trains none."""
    recipe = name.rpartition("-")[0]
    if recipe not in recipes(verb="fit"):
        return None
    return stage_class(load_recipe(Library().recipes, recipe))


def given_to(kind: type[LightningModule]) -> set[str]:
    """Arguments that come from the run's data and needs, as far as the stage takes them."""
    return {*ROLES, "negative", "seed", "times"} & set(parameters_of(kind))


def stage_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The other arguments, checked against the stage's constructor.

    Raises:
        ValueError: naming the key of ``stage`` that is unknown, missing or of the wrong type.
    """
    kind = stage_class(recipe)
    settings = {key: value for key, value in recipe["stage"].items() if key != "class"}
    return bind(kind, settings, given_to(kind), "stage")


def build_stage(
    recipe: Mapping[str, Any], networks: Mapping[str, nn.Module], **data: Any
) -> LightningModule:
    """The stage around its networks, by role; ``data`` are ``negative`` and ``times``."""
    kind = stage_class(recipe)
    given = {**networks, **data, "seed": recipe["seed"]}
    return kind(**{name: given[name] for name in given_to(kind)}, **stage_settings(recipe))


def asked_of_networks(
    recipe: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None = None
) -> DryRun:
    """Every call that the recipe's training steps make, by running them on 1 x 1 latents.

    Args:
        shapes: of the data's fields, where the stage reads other than latents, text, trajectories.
    """
    grid = recipe["stage"]["clip_shape"][2:]
    fields = {name: _one_pixel(shape, grid) for name, shape in (shapes or {}).items()}
    return dry_run(example_stage(recipe), fields)


def example_stage(recipe: Mapping[str, Any]) -> LightningModule:
    """The stage on 1 x 1 latents, around networks that only count; built in milliseconds.

    Raises:
        ValueError: settings of ``stage`` that are wrong or do not fit each other.
    """
    stage = dict(recipe["stage"])
    if "clip_shape" in stage_settings(recipe):
        stage["clip_shape"] = [stage["clip_shape"][0], 1, 1, 1]
    networks = {role: Tally(role) for role in ROLES}
    small = {**recipe, "stage": stage}
    return build_stage(small, networks, negative=torch.zeros(1, 1), times=EXAMPLE_TIMES)


def _one_pixel(shape: Sequence[int], grid: Sequence[int]) -> list[int]:
    """The shape of a field whose last two sizes are the latents', if they are, of 1 x 1."""
    return [*shape[:-2], 1, 1] if list(shape[-2:]) == list(grid) else list(shape)
