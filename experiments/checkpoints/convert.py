"""``import`` and ``export``: weights from and to other code.

Imported are the students that CausVid, Self Forcing, Causal Forcing and Causal Forcing++ publish
and Wan's own files; the result is a folder in diffusers format, which a recipe may name wherever it
names a run (``needs.student={folder: ...}``). Exported are such folders: stock diffusers loads them
and, knowing nothing of blocks, runs them bidirectionally.

Tensors are copied bit for bit, in the dtype they have. Files are read as safetensors or with
``weights_only=True``; a folder appears whole or not at all.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.checkpoints import sampling_config
from experiments.checkpoints.networks import autoencoder_id, network_folder, numbers_of
from experiments.checkpoints.wan_keys import (
    Weights,
    check_fits,
    config_of,
    to_diffusers,
    to_published,
    unwrapped,
)
from lightning_modules.networks.pipeline_folder import weight_files

log = logging.getLogger(__name__)
KEPT = ("ema", "raw", "critic")
_KEYS = {"ema": ("generator_ema",), "raw": ("generator", "model"), "critic": ("critic",)}


def import_checkpoint(
    file: Path, folder: Path, which: str | None = None, config: Path | None = None
) -> None:
    """Write the network of a published checkpoint as ``folder``, in diffusers format.

    Args:
        file: ``.pt``, ``.pth`` or ``.safetensors``, or a folder of safetensors with their index.
        which: ``ema``, ``raw`` or ``critic``. By default the average where there is one: it is what
            the methods sample and what Stage 3 starts from (CD writes nothing else after its
            200th step); ``raw`` is what the chunk-wise student of Causal Forcing is published as.
        config: a folder with a config.json, for networks of no published size.

    Raises:
        FileNotFoundError, FileExistsError: nothing to read, or something where it should go.
        ValueError: a damaged file, one that holds more than tensors, no weights of that kind,
            names or shapes that are not those of a Wan 2.1 text-to-video network.
    """
    _require_free(folder)
    found = _read(file)
    chosen, weights = _choose(found, which, file)
    try:
        named = to_diffusers(unwrapped(weights))
        numbers = numbers_of(config) if config else config_of(named)
        check_fits(named, numbers)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    source = {"source": {"file": file.name, "weights": chosen}}
    with _new_folder(folder) as growing:
        _save(named, numbers, growing)
        sampling_config.write(growing, source)
    values = sum(tensor.numel() for tensor in named.values())
    log.info("%s (%s): %.2f billion parameters -> %s", file, chosen, values / 1e9, folder)


def export_network(where: Path, folder: Path, original: bool = False) -> None:
    """Write the network of a run, or of a folder, as ``folder``, for others to load.

    Args:
        where: a run that trained a network, or a folder with one.
        original: write ``original/`` too, under the names of Wan's published code.

    Raises:
        FileNotFoundError, FileExistsError: nothing to export, or something where it should go.
        ValueError: weights that are damaged or are not a Wan's.
    """
    _require_free(folder)
    source = network_folder(where)
    files, numbers = weight_files(source), numbers_of(source)
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    try:
        check_fits(weights, numbers)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    settings = sampling_config.settings_of(where, source)
    if autoencoder := autoencoder_id(where):
        settings["autoencoder"] = autoencoder
    with _new_folder(folder) as growing:
        _save(weights, numbers, growing)
        sampling_config.write(growing, settings)
        if original:
            (growing / "original").mkdir()
            save_file(to_published(weights), growing / "original" / "wan.safetensors")
    log.info("%s -> %s: WanTransformer3DModel.from_pretrained(%r)", where, folder, str(folder))


def _read(file: Path) -> Mapping[str, Any]:
    """The tensors of a file, or of a folder of shards; mapped, not copied, into memory."""
    try:
        if file.is_dir():
            return {name: t for part in weight_files(file) for name, t in load_file(part).items()}
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: {error.strerror or error}") from error
    except UnpicklingError as error:
        raise ValueError(
            f"{file}: holds more than tensors, or is no checkpoint; such a file could run code and"
            " is not read. Where you trust it, save its tensors alone, as safetensors"
        ) from error
    except (RuntimeError, EOFError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: damaged or cut off ({first}); download it again") from error


def _choose(
    found: Mapping[str, Any], which: str | None, file: Path
) -> tuple[str, Mapping[str, Tensor]]:
    """The key of a checkpoint and the weights under it; a bare state dict has the key ``file``."""
    there = {kind: key for kind in KEPT for key in _KEYS[kind] if isinstance(found.get(key), dict)}
    if not there and which in (None, "raw") and _all_tensors(found):
        return "file", found
    kind = which or next((kind for kind in ("ema", "raw") if kind in there), None)
    if kind not in there:
        has = ", ".join(f"{key} (--{kind})" for kind, key in there.items())
        other = "no network under any known key" if not there else f"it has {has}"
        raise ValueError(
            f"{file}: no {'weights' if kind is None else kind + ' weights'};"
            f" {other} (top level: {', '.join(map(str, list(found)[:5]))})"
        )
    if which is None and {"ema", "raw"} <= there.keys():
        log.info("%s: taking %s, the average; --raw takes %s", file, there["ema"], there["raw"])
    weights = found[there[kind]]
    if not _all_tensors(weights):
        raise ValueError(f"{file}: {there[kind]} holds more than tensors by name")
    return there[kind], weights


def _all_tensors(found: Mapping[str, Any]) -> bool:
    return bool(found) and all(isinstance(value, Tensor) for value in found.values())


def _save(weights: Weights, numbers: Mapping[str, Any], folder: Path) -> None:
    """config.json and safetensors, as diffusers writes them; every tensor keeps its dtype."""
    with torch.device("meta"):
        network = WanTransformer3DModel(**numbers)
    network.load_state_dict(weights, assign=True)
    network.save_pretrained(folder)


def _require_free(folder: Path) -> None:
    """Asked before anything large is read."""
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; name another, or remove it")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name when it is complete; a failure leaves nothing."""
    growing = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    growing.mkdir(parents=True)
    try:
        yield growing
        os.rename(growing, folder)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
