"""From what a user names, a run, a folder, a published checkpoint or a hub id, to a `Student`."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from experiments.bench.sizes import scale_tree
from experiments.checkpoints import sampling_config
from experiments.checkpoints.convert import import_checkpoint
from experiments.checkpoints.networks import (
    autoencoder_id,
    network_defaults,
    network_folder,
    network_section,
)
from experiments.generation.generation import frozen, require_network
from experiments.generation.student import Student
from experiments.launch.hardware import accelerated, acceleration_of, launch_of, prepare
from experiments.launch.memory.check import before_encoding
from experiments.live.training_data import Encoders, encoders_of
from experiments.runs.contents import fingerprint
from experiments.runs.folder import RunFolder, home_path, runs_dir
from experiments.runs.recipe import Library
from experiments.runs.unchanged import check_result
from lightning_modules.diffusion.visibility import partition
from lightning_modules.networks.encoders import (
    WAN_NEGATIVE_PROMPT,
    WanText,
    WanVAE,
    wan_vae_dtype,
)

log = logging.getLogger(__name__)
WAN_FPS = 16
WAN_TEXT_DIM = 4096
PUBLISHED = "wan1.3b"
"""The scale of students that no run has trained."""
CHECKPOINTS = (".pt", ".pth", ".safetensors")
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+)")


def open_student(where: str, chosen: argparse.Namespace) -> Student:
    """The student that a user names, ready to generate.

    Args:
        where: a run, a folder with a network, a published checkpoint file, or a hub id, also with
            the path of a file in it (``gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt``).
        chosen: of `command.declare_students`.

    Raises:
        FileNotFoundError: it is not there, or its data and encoders are not.
        ValueError: it cannot stream, or does not fit its encoders or the settings.
    """
    for option in ("steps", "window"):
        if (value := getattr(chosen, option)) is not None and value < 1:
            raise ValueError(f"--{option}: {value} must be at least 1")
    if chosen.sinks < 0:
        raise ValueError(f"--sinks: {chosen.sinks} must be at least 0")
    if chosen.sinks_follow and not chosen.sinks:
        raise ValueError("--sinks-follow: there are no sinks; give --sinks, too")
    home = _home(where)
    if isinstance(home, Path) and (home / "recipe.yaml").is_file():
        return _of_run(RunFolder(home), chosen)
    return _of_weights(home, chosen)


def _home(where: str) -> Path | str:
    """The run or folder that is meant; a checkpoint is imported first. Else a pipeline's hub id."""
    path = home_path(where)
    if path.is_dir():
        is_part = path.name == "student" and (path.parent / "recipe.yaml").is_file()
        return path.parent if is_part else path
    if path.is_file():
        return _imported(path)
    hub = _HUB_FILE.fullmatch(where)
    if hub and path.suffix in CHECKPOINTS and not path.is_absolute() and where[0] not in ".~":
        return _imported(_downloaded(*hub.groups()))
    return where


def _downloaded(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{repository}/{file}: no such file, and not available from the hub"
            f" ({str(error).splitlines()[0]}); with network access run: hf download {repository}"
            f" {file}, or give the path of a file"
        ) from error


def _imported(file: Path) -> Path:
    """The diffusers folder of a published checkpoint, made when it is first used."""
    folder = runs_dir() / "imported" / f"{file.stem}-{fingerprint(file)}"
    if not folder.is_dir():
        import_checkpoint(file, folder)
    return folder


def _of_run(run: RunFolder, chosen: argparse.Namespace) -> Student:
    recipe = run.recipe
    if recipe["verb"] != "fit" or "blocks" not in recipe.get("stage", {}):
        raise ValueError(
            f"{run.path}: a {recipe['verb']} run of {recipe['recipe']} has no student; give a run"
            " of Stage 1, 2 or 3"
        )
    if not run.done:
        raise ValueError(f"{run.path}: this run is {run.state()}, not done; run: {run.command}")
    check_result(run)
    _note_ignored(run.name, chosen, "its run says them", "scale", "wan", "blocks")
    launch, device = launch_of(recipe), prepare(recipe)
    encoders = encoders_of(run, device, compile=launch.compile)
    sampling = sampling_config.sampling_of(recipe["stage"])
    return _student(run.path, run.name, sampling, encoders, recipe["fit"]["precision"],
                    launch, device, chosen)  # fmt: skip


def _of_weights(where: Path | str, chosen: argparse.Namespace) -> Student:
    """Of a network alone: sampled as its causal.json says, else as the scale does."""
    network = network_folder(where)
    tree = scale_tree(chosen.scale or PUBLISHED, {}, Library())
    known = sampling_config.read(network).get("sampling")
    if known:
        _note_ignored(str(where), chosen, f"{network / sampling_config.NAME} says them", "blocks")
    sampling = known or _of_scale(tree, chosen.blocks)
    if known is None:
        log.info(
            "%s does not say how it is sampled: %s steps, blocks of %s latent frames, shift %g"
            " (--steps, --blocks, --scale)",
            where, chosen.steps or sampling["few_steps"], sampling["blocks"][-1], sampling["shift"],
        )  # fmt: skip
    launch = acceleration_of(tree)
    device = prepare({"seed": 0})
    home = chosen.wan or _with_encoders(network)
    if home is None and (width := _text_width(network_section(where))) != WAN_TEXT_DIM:
        raise ValueError(
            f"{where}: made for text of width {width}, but Wan's encoder gives {WAN_TEXT_DIM}:"
            " it is of another world; give the run that trained it, whose data has its encoders"
        )
    home = home or tree.get("wan")
    if home is None:
        raise ValueError(f"{where}: give --wan, the Wan2.1 folder with its VAE and text encoder")
    before_encoding(home, launch, device, vae=wan_vae_dtype(device))
    before_encoding(home, launch, torch.device("cpu"), text_encoder=torch.bfloat16)
    vae = WanVAE(home, device, compile=launch.compile)
    if (own := autoencoder_id(where)) not in (None, vae.id):
        raise ValueError(f"{home}: its VAE is {vae.id}, {where} was made with {own}; give --wan")
    text = WanText(home, "cpu", torch.bfloat16)
    encoders = Encoders(text, vae, WAN_FPS, WAN_NEGATIVE_PROMPT)
    name = Path(where).name
    return _student(where, name, sampling, encoders, tree["precision"], launch, device, chosen)


def _text_width(section: Mapping[str, Any]) -> int:
    return (network_defaults(section) | section)["text_dim"]


def _note_ignored(name: str, chosen: argparse.Namespace, why: str, *options: str) -> None:
    """Say which of these options were given in vain."""
    if given := [f"--{option}" for option in options if getattr(chosen, option) is not None]:
        log.warning("%s is without effect on %s: %s", " and ".join(given), name, why)


def _with_encoders(network: Path) -> Path | None:
    """The pipeline around a network."""
    parts = ("vae", "text_encoder")
    for folder in (network, network.parent):
        if all((folder / part / "config.json").is_file() for part in parts):
            return folder
    return None


def _of_scale(tree: Mapping[str, Any], blocks: str | None) -> dict[str, Any]:
    """The sampler of a published student, in the words of `sampling_config.sampling_of`."""
    chosen: Any = tree["blocks"] if blocks is None else blocks
    chosen = int(chosen) if str(chosen).isdecimal() else chosen
    return {
        "sampler": "few_steps",
        "clip_shape": list(tree["clip_shape"]),
        "blocks": list(partition(chosen, tree["clip_shape"][0])),
        "shift": tree["shift"],
        "few_steps": 4,
        "first_few_steps": 4,
        "guidance": 1.0,
    }


def _student(
    where: Path | str,
    name: str,
    sampling: Mapping[str, Any],
    encoders: Encoders,
    precision: str,
    launch: Any,
    device: torch.device,
    chosen: argparse.Namespace,
) -> Student:
    if sampling["sampler"] == "bidirectional_ode":
        raise ValueError(
            f"{where}: a bidirectional network samples whole clips and cannot stream; give a run"
            " of Stage 1, 2 or 3"
        )
    if own := [key for key in ("levels", "noisy_from") if sampling.get(key) is not None]:
        raise ValueError(
            f"{where}: it was trained with {' and '.join(own)}, which a stream has not; sample it"
            " by the recipe sample_schedule"
        )
    section = network_section(where)
    posed = bool(section.get("cameras"))
    if posed and encoders.camera is None:
        raise ValueError(
            f"{where}: its network was made with cameras, but nothing says how far a key moves"
            " them; give the run that trained it, whose data's manifest.json has cameras"
        )
    require_network(f"student {where}", section, "clip_shape", sampling["clip_shape"])
    width = _text_width(section)
    if width != encoders.text.dim:
        raise ValueError(
            f"{where}: made for text of width {width}, the text encoder gives {encoders.text.dim};"
            " give --wan"
        )
    few = sampling["sampler"] == "few_steps"
    trained = sampling["few_steps" if few else "intervals"]
    network = accelerated(frozen(where, device, precision), launch, device)
    return Student(
        name=name,
        identity=str(fingerprint(network_folder(where))),
        network=network,
        text=encoders.text,
        autoencoder=encoders.autoencoder,
        negative=encoders.text.encode([encoders.negative])[0].to(device),
        clip_shape=tuple(sampling["clip_shape"]),
        blocks=tuple(sampling["blocks"]),
        sampler=sampling["sampler"],
        steps=chosen.steps or trained,
        first_steps=sampling["first_few_steps"] if few else 1,
        shift=sampling["shift"],
        guidance=sampling["guidance"],
        window=chosen.window or sampling["clip_shape"][0],
        sinks=chosen.sinks,
        fps=encoders.fps,
        precision=precision,
        device=device,
        captions=tuple(islice(encoders.captions, 100)),
        camera=encoders.camera if posed else None,
        pictures=encoders.pictures if posed else (),
        sinks_follow=chosen.sinks_follow,
    )
