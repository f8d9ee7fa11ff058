"""Networks for the verbs: randomly initialised from a config, or loaded from a run or a folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.shards.manifest import read_manifest
from datamodules.values import fault
from experiments.checkpoints import sampling_config
from experiments.runs.config import nearest
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind, parameters_of
from lightning_modules import networks
from lightning_modules.networks.encoders import WanVAE
from lightning_modules.networks.pipeline_folder import load_part, locate, read_config

ROLES = ("student", "teacher", "critic")
"""The needs of a recipe that are networks: the arguments of a stage's constructor."""
SUBFOLDERS = ("student", "transformer", "law", ".")
"""Where a folder may have its network: a training run, Wan's pipeline, the clips of a closed-form
world, the network's own folder."""


def fresh_network(config: Mapping[str, Any], seed: int) -> nn.Module:
    """A network with seeded random weights and a zero-initialised head, if it has one.

    Raises:
        ValueError: naming the key of ``network`` that is unknown, missing or of the wrong type.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = new_network(config)
    if hasattr(network, "zero_head"):
        network.zero_head()
    return network


def with_more(section: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A section ``network`` with more arguments; ValueError for one that weights cannot do without.

    A class names in ``silent_at_first`` those whose weights change no output before they learn.
    """
    offered = getattr(network_class(section), "silent_at_first", ())
    if wrong := sorted(set(more) - set(offered)):
        raise ValueError(
            f"fit.student_with: {wrong[0]} cannot be given to a network that has weights"
            f"{nearest(wrong[0], offered)} (there are: {', '.join(offered) or 'none'})"
        )
    return {**section, **more}


def grown(network: nn.Module, section: Mapping[str, Any], seed: int) -> nn.Module:
    """A network of ``section`` (`with_more`) with the weights of ``network``, and its outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = new_network(section)
    _, unknown = made.load_state_dict(network.state_dict(), strict=False)
    assert not unknown, "only more arguments were given"
    return made


def new_network(config: Mapping[str, Any]) -> nn.Module:
    """A network as its constructor makes it, from a section ``network``."""
    return network_class(config)(**check_network(config))


def check_network(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments of a section ``network``, checked."""
    arguments = {key: value for key, value in config.items() if key != "class"}
    return bind(network_class(config), arguments, section="network")


def network_class(config: Mapping[str, Any]) -> type[nn.Module]:
    """The class that ``network.class`` names, else Wan; ValueError with the nearest if none."""
    name = config.get("class", "Wan")
    known = [home.rpartition(".")[2] for home in networks.classes().values()]
    if name not in known:
        raise ValueError(
            f"network.class: there is no network {name!r}{nearest(str(name), known)} (there are:"
            f" {', '.join(known)}; add yours as a folder of lightning_modules/networks)"
        )
    return getattr(networks, name)


def meta_network(config: Mapping[str, Any]) -> nn.Module:
    """A network on torch's meta device: shapes only, no memory for weights."""
    with torch.device("meta"):
        return new_network(config)


def load_network(where: str | Path) -> nn.Module:
    """The network, float32, of a folder (one of its `SUBFOLDERS`) or of a pipeline by its hub id.

    Raises:
        FileNotFoundError: there is no network, or an incomplete one.
        ValueError: its weights are damaged, incomplete, not finite, or do not fit its config.json.
    """
    kind = class_of(folder := network_folder(where))
    if not has_weights(kind):
        return kind.from_pretrained(folder)
    network = load_part(kind, folder, torch_dtype=torch.float32)
    if unfit := unfit_weight(network.named_parameters()):
        raise ValueError(f"{folder}: {unfit}; take another checkpoint, or train it again")
    return network


def unfit_weight(weights: Iterable[tuple[str, Tensor]]) -> str:
    """The first weight that is not finite or of an impossible size: "name is why"; "" if none."""
    found = ((name, fault(tensor.detach())) for name, tensor in weights)
    return next((f"{name} is {why}" for name, why in found if why), "")


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


def network_section(where: str | Path) -> dict[str, Any]:
    """A network's class and arguments as a recipe's section ``network`` would say them."""
    folder = network_folder(where)
    return {"class": class_of(folder).__name__, **network_config(folder)}


def network_defaults(section: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor takes where a section ``network`` says nothing."""
    parameters = parameters_of(network_class(section)).items()
    return {name: p.default for name, p in parameters if p.default is not p.empty}


def class_of(folder: Path) -> type[nn.Module]:
    """The class of a network, by its config.json; ValueError if none answers to that name."""
    name, known = read_config(folder).get("_class_name"), networks.classes()
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{folder / 'config.json'}: _class_name is {name!r}, none of {', '.join(known)}"
        )
    return getattr(networks, known[name].rpartition(".")[2])


def has_weights(kind: type[nn.Module]) -> bool:
    """Whether a network is more than its config.json."""
    return getattr(kind, "has_weights", True)


def bf16(network: nn.Module) -> nn.Module:
    """A frozen network with weights in bfloat16, if it offers that, else as it is."""
    if hasattr(network, "to_bfloat16"):
        network.to_bfloat16()
    return network


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
    shards = data / "shards"
    if not (shards / "manifest.json").is_file():
        return None
    return (read_manifest(shards).get("autoencoder") or {}).get("id")
