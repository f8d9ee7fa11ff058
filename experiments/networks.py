"""Networks for the verbs: fresh ones from numbers, trained ones from a run or a Wan folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from experiments.bind import bind

ROLES = ("student", "teacher", "critic")
"""The needs of a recipe that are networks, by the constructor argument they become."""


def fresh_network(numbers: Mapping[str, Any], seed: int) -> nn.Module:
    """A Wan with seeded random weights and, like Wan's own, a head that starts at zero.

    Raises:
        ValueError: naming the key of ``network`` that is unknown, missing or of the wrong type.
    """
    from lightning_modules.networks import Wan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Wan(**check_network(numbers))
    nn.init.zeros_(network.proj_out.weight)
    nn.init.zeros_(network.proj_out.bias)
    return network


def check_network(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network, checked against its constructor."""
    from lightning_modules.networks import Wan

    return bind(Wan, numbers, section="network")


def load_network(where: Path) -> nn.Module:
    """The network of a run folder (``student/``), of a Wan pipeline folder or of a folder itself.

    Raises:
        FileNotFoundError: there is no network in any of these places.
        ValueError: its weights are damaged, incomplete or do not fit its config.json.
    """
    for folder in (where / "student", where / "transformer", where):
        if (folder / "config.json").is_file():
            return _read(folder)
    raise FileNotFoundError(
        f"{where}: no student/config.json, transformer/config.json or config.json there; give a run"
        " that trained a network, or a Wan2.1 folder in diffusers format"
    )


def _read(folder: Path) -> nn.Module:
    """A folder in diffusers format; what it lacks is refused, where diffusers would draw it."""
    from lightning_modules.networks import Wan

    cure = "copy the folder again, or run again what wrote it"
    try:
        network, found = Wan.from_pretrained(folder, output_loading_info=True)
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder}: weights that do not load ({first}): {cure}") from error
    if found["missing_keys"]:
        raise ValueError(f"{folder}: has no weights for {found['missing_keys'][0]}: {cure}")
    return network
