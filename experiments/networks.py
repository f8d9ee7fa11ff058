"""Networks for the verbs: fresh ones from numbers, others from a run or a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from experiments.bind import bind

ROLES = ("student", "teacher", "critic")
"""The needs of a recipe that are networks, by the constructor argument they become."""
PLACES = ("student", "transformer", "law", ".")
"""Where a folder may hold its network: a run that trained, Wan's pipeline, a set of clips whose law
is known, the network's own folder."""
CLASSES = {"WanTransformer3DModel": "Wan", "ClosedForm": "ClosedForm"}
"""What config.json calls a network -> its class in `lightning_modules.networks`."""


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
    """The network of a folder, in one of the `PLACES` in it.

    Raises:
        FileNotFoundError: there is no network in any of these places.
        ValueError: its weights are damaged, incomplete or do not fit its config.json.
    """
    for folder in (where / place for place in PLACES):
        if (folder / "config.json").is_file():
            return _read(folder)
    raise FileNotFoundError(
        f"{where}: no student/config.json, transformer/config.json, law/config.json or config.json"
        " there; give a run that trained a network, clips of a closed-form world, or a Wan2.1"
        " folder in diffusers format"
    )


def _read(folder: Path) -> nn.Module:
    """A folder in diffusers format; what it lacks is refused, where diffusers would draw it."""
    from lightning_modules import networks

    cure = "copy the folder again, or run again what wrote it"
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
        kind = getattr(networks, CLASSES[name])
        network, found = kind.from_pretrained(folder, output_loading_info=True)
    except KeyError as error:
        raise ValueError(
            f"{folder / 'config.json'}: _class_name is none of {', '.join(CLASSES)} ({error})"
        ) from error
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder}: weights that do not load ({first}): {cure}") from error
    if found["missing_keys"]:
        raise ValueError(f"{folder}: has no weights for {found['missing_keys'][0]}: {cure}")
    return network
