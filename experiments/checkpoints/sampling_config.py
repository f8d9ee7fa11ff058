"""``causal.json``: the sampling configuration of a network, next to its weights.

A separate file, because stock diffusers warns about unknown keys of config.json, and private keys
would be copied, silently, into networks trained from the folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.json_files import read_object
from experiments.runs.folder import RunFolder
from lightning_modules import stage as stage_named
from lightning_modules.bidirectional import Bidirectional
from lightning_modules.diffusion.rollout import block_times, few_step_times
from lightning_modules.diffusion.visibility import partition
from lightning_modules.training.flow_matching import FlowMatching

NAME = "causal.json"


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``folder/causal.json`` in a new folder."""
    (folder / NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """The content of ``folder/causal.json``; empty if there is none. ValueError if damaged."""
    path = folder / NAME
    return read_object(path, "export the network again") if path.is_file() else {}


def settings_of(where: Path, network: Path) -> dict[str, Any]:
    """A network's source and sampler: from the run that trained it, or from its causal.json.

    Args:
        where: a run folder, or another.
        network: the folder in it with the weights.
    """
    run = RunFolder(where)
    if (where / "recipe.yaml").is_file() and "stage" in run.recipe:
        return {"source": {"run": run.name}, "sampling": sampling_of(run.recipe["stage"])}
    return read(network)


def sampling_of(stage: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler of a stage's result with all its settings; guidance 1 is none.

    A schedule of a block is ``levels``, the last list repeated, or ``first_times`` and ``times``;
    ``noisy_from`` is the first block without a KV-cache update, if there is one.
    """
    kind = stage_named(stage["class"])
    sizes, shift = partition(stage["blocks"], stage["clip_shape"][0]), stage["shift"]
    shared = {
        "stage": stage["class"],
        "clip_shape": list(stage["clip_shape"]),
        "blocks": list(sizes),
        "shift": shift,
    }
    if issubclass(kind, FlowMatching):
        sampler = "bidirectional_ode" if issubclass(kind, Bidirectional) else "autoregressive_ode"
        steps = {"intervals": stage["intervals"], "guidance": stage["guidance"]}
        return shared | {"sampler": sampler} | steps
    shared |= {"sampler": "few_steps", "guidance": 1.0}
    if (noisy_from := stage.get("noisy_from")) is not None:
        shared["noisy_from"] = noisy_from
    if levels := stage.get("levels"):
        times = block_times(sizes, levels, "stage.levels")[: len(levels)]
        return shared | {"levels": [each.tolist() for each in times]}
    few = stage.get("few_steps", kind.few_steps)
    first = stage.get("first_few_steps", kind.first_few_steps)
    times = few_step_times([1, 1], few, first, shift)
    return shared | {
        "few_steps": few,
        "first_few_steps": first,
        "first_times": times[0].tolist(),
        "times": times[1].tolist(),
    }
