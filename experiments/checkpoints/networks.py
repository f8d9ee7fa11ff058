"""Networks for the verbs: randomly initialised from a config, or loaded from a run or a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.checkpoints import sampling_config
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from lightning_modules.networks.encoders import WanVAE
from lightning_modules.networks.pipeline_folder import load_part, locate, read_config

ROLES = ("student", "teacher", "critic")
"""The needs of a recipe that are networks: the arguments of a stage's constructor."""
SUBFOLDERS = ("student", "transformer", "law", ".")
"""Where a folder may have its network: a training run, Wan's pipeline, the clips of a closed-form
world, the network's own folder."""
CLASSES = {"WanTransformer3DModel": "Wan", "ClosedForm": "ClosedForm"}
"""What config.json calls a network -> its class in `lightning_modules.networks`."""


def fresh_network(config: Mapping[str, Any], seed: int) -> nn.Module:
    """A Wan with seeded random weights and, as in Wan's own code, a zero-initialised head.

    Raises:
        ValueError: naming the key of ``network`` that is unknown, missing or of the wrong type.
    """
    from lightning_modules.networks import Wan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Wan(**check_network(config))
    nn.init.zeros_(network.proj_out.weight)
    nn.init.zeros_(network.proj_out.bias)
    return network


def check_network(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a network, checked against its constructor."""
    from lightning_modules.networks import Wan

    return bind(Wan, config, section="network")


def meta_network(config: Mapping[str, Any]) -> nn.Module:
    """A Wan on torch's meta device: shapes only, no memory for weights."""
    from lightning_modules.networks import Wan

    with torch.device("meta"):
        return Wan(**check_network(config))


def load_network(where: str | Path) -> nn.Module:
    """Load the network of a folder (in one of its `SUBFOLDERS`), or of a pipeline by its hub id.

    Raises:
        FileNotFoundError: there is no network, or an incomplete one.
        ValueError: its weights are damaged, incomplete or do not fit its config.json.
    """
    return _read(network_folder(where))


def network_folder(where: str | Path) -> Path:
    """The folder of a network's config.json and weights; loads nothing.

    Raises:
        FileNotFoundError: none of the `SUBFOLDERS` has a config.json.
    """
    home = locate(where, "transformer")
    for folder in (home / name for name in SUBFOLDERS):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{where}: no student/config.json, transformer/config.json, law/config.json or config.json"
        " there; give a run that trained a network, clips of a closed-form world, or a Wan2.1"
        " folder in diffusers format"
    )


def network_config(folder: Path) -> dict[str, Any]:
    """The constructor's arguments of a network, from its config.json."""
    return {k: v for k, v in read_config(folder).items() if not k.startswith("_")}


def autoencoder_id(where: str | Path) -> str | None:
    """The autoencoder of a network's latents.

    From the causal.json of an exported network, else the pipeline's own VAE, else that of the run's
    data. None if unknown: the data of a finished run may have been deleted, and published students
    do not name it.

    Raises:
        FileNotFoundError: there is no network, or its pipeline's VAE is incomplete.
        ValueError: the VAE is damaged.
    """
    home, network = locate(where, "transformer", "vae"), network_folder(where)
    if own := sampling_config.read(network).get("autoencoder"):
        return own
    for pipeline in (home, network.parent):
        if (pipeline / "vae" / "config.json").is_file():
            return WanVAE(pipeline).id
    if not (home / "recipe.yaml").is_file():
        return None
    run = RunFolder(home)
    data = home  # a law lies in its data
    if "data" in run.recipe["needs"]:
        made = run.needs.get("data")
        data = made.path if made else run.need("data")
    manifest = data / "shards" / "manifest.json"
    if not manifest.is_file():
        return None
    return (json.loads(manifest.read_text()).get("autoencoder") or {}).get("id")


def _read(folder: Path) -> nn.Module:
    """The network of a folder in diffusers format, in float32."""
    from lightning_modules import networks

    name = read_config(folder).get("_class_name")
    if name not in CLASSES:
        raise ValueError(
            f"{folder / 'config.json'}: _class_name is {name!r}, none of {', '.join(CLASSES)}"
        )
    kind = getattr(networks, CLASSES[name])
    if kind is networks.ClosedForm:  # its config is all there is
        return kind.from_pretrained(folder)
    return load_part(kind, folder, torch_dtype=torch.float32)
