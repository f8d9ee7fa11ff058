"""``import`` and ``export``: weights from and to other code.

Import reads the students that CausVid, Self Forcing, Causal Forcing and Causal Forcing++ publish
and Wan's own files, and writes a folder in diffusers format, which a recipe may name in place of a
run (``needs.student={folder: ...}``). Export writes such folders: stock diffusers loads them, but
runs them bidirectionally.

Tensors are copied bit for bit, in their dtype. Files are read as safetensors or with
``weights_only=True``; a folder is written atomically.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.values import fault
from experiments.checkpoints import sampling_config
from experiments.checkpoints.networks import (
    autoencoder_id,
    network_config,
    network_folder,
    unfit_weight,
)
from experiments.checkpoints.wan_keys import (
    Weights,
    check_fits,
    config_of,
    has_cameras,
    to_diffusers,
    to_published,
    unwrapped,
)
from lightning_modules.networks import Wan
from lightning_modules.networks.pipeline_folder import read_config, weight_files, writing

log = logging.getLogger(__name__)
KEPT = ("ema", "raw", "critic")
_STOCK = "WanTransformer3DModel"  # of diffusers; what our Wan calls itself in a folder
_EMA = re.compile(r"(^|[._])(ema|average|averaged|shadow)($|[._])", re.IGNORECASE)
_CRITIC = re.compile(r"(^|[._])(critic|fake|discriminator)($|[._])")
_DEEPEST = 3  # levels of a checkpoint at which its networks are looked for
_ZIP = b"PK"  # how torch's files begin since 1.6; older ones cannot be memory-mapped


def import_checkpoint(
    file: Path,
    folder: Path,
    which: str | None = None,
    config: Path | None = None,
    key: str | None = None,
) -> None:
    """Write the network of a published checkpoint as ``folder``, in diffusers format.

    Args:
        file: ``.pt``, ``.pth`` or ``.safetensors``, or a folder of safetensors with their index.
        which: ``ema``, ``raw`` or ``critic`` (the fake score). By default the EMA if there is one:
            the methods sample it and start Stage 3 from it (CD saves nothing else after step 200);
            the chunk-wise student of Causal Forcing is published as ``raw``.
        config: a folder with a config.json, for networks of other than published sizes.
        key: the key of the weights in the file, such as ``ema.shadow``, where ``which`` does not
            tell.

    Raises:
        FileNotFoundError, FileExistsError: nothing to read, or the target exists.
        ValueError: a damaged file, one with more than tensors, no weights of that kind or several,
            weights that are not finite or all constant, or names or shapes other than those of a
            Wan 2.1 text-to-video network.
    """
    _require_free(folder)
    found = _read(file)
    chosen, weights = _choose(found, which, key, file)
    try:
        named = to_diffusers(unwrapped(weights))
        settings = network_config(config) if config else config_of(named)
        if has_cameras(named):
            settings = settings | {"cameras": True}
        check_fits(named, settings)
        _require_sound(named)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    source = {"source": {"file": file.name, "weights": chosen}}
    with _new_folder(folder) as growing:
        _save(named, settings, growing)
        sampling_config.write(growing, source)
    values = sum(tensor.numel() for tensor in named.values())
    log.info("%s (%s): %.2f billion parameters -> %s", file, chosen, values / 1e9, folder)


def export_network(where: Path, folder: Path, original: bool = False) -> None:
    """Write the network of a run or a folder as ``folder``, for other code to load.

    Args:
        where: a run that trained a network, or a folder with one.
        original: also write ``original/``, under the names of Wan's published code.

    Raises:
        FileNotFoundError, FileExistsError: nothing to export, or the target exists.
        ValueError: weights that are damaged, or a network other than Wan.
    """
    _require_free(folder)
    source = network_folder(where)
    _require_stock(source)
    files, config = weight_files(source), network_config(source)
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    try:
        check_fits(weights, config)
        _require_sound(weights)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    settings = sampling_config.settings_of(where, source)
    if autoencoder := autoencoder_id(where):
        settings["autoencoder"] = autoencoder
    with _new_folder(folder) as growing:
        _save(weights, config, growing)
        sampling_config.write(growing, settings)
        if original:
            (growing / "original").mkdir()
            with writing(growing / "original"):
                save_file(to_published(weights), growing / "original" / "wan.safetensors")
    log.info("%s -> %s: WanTransformer3DModel.from_pretrained(%r)", where, folder, str(folder))


def _read(file: Path) -> Any:
    """The tensors of a file, or of a folder of shards; memory-mapped."""
    try:
        if file.is_dir():
            return {name: t for part in weight_files(file) for name, t in load_file(part).items()}
        if file.suffix == ".safetensors":
            return load_file(file)
        with file.open("rb") as opened:
            zipped = opened.read(len(_ZIP)) == _ZIP
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: {error.strerror or error}") from error
    except UnpicklingError as error:
        raise ValueError(
            f"{file}: holds more than tensors, or is no checkpoint; such a file could run code and"
            " is not read. If you trust it, save its tensors alone, as safetensors"
        ) from error
    except Exception as error:  # unpickling a file of another kind may raise anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: cut off
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file}: damaged, cut off, or no checkpoint ({first}); download it again"
        ) from error


def _choose(
    found: Mapping[str, Any], which: str | None, key: str | None, file: Path
) -> tuple[str, Mapping[str, Tensor]]:
    """The key of a checkpoint and its weights; a bare state dict has the key ``file``.

    Never the student's own weights where there is an average, nor one of several by chance.
    """
    if key is None and which in (None, "raw") and _all_tensors(found):
        return "file", found
    there = dict(_networks(found))
    has = ", ".join(f"{name} (--{_kind(name)})" for name in there)
    kinds = {_kind(name) for name in there}
    wanted = which or next((kind for kind in ("ema", "raw") if kind in kinds), None)
    chosen = [name for name in there if key == name or key is None and _kind(name) == wanted]
    if not chosen:
        what = f"weights under {key}" if key else f"{which} weights" if which else "weights"
        other = f"it has {has}" if has else "no network under any known key"
        raise ValueError(f"{file}: no {what}; {other} (top level: {_top(found)})")
    if len(chosen) > 1:
        raise ValueError(f"{file}: {len(chosen)} {wanted} networks; choose one by --key: {has}")
    average = "the EMA" if _kind(chosen[0]) == "ema" else f"{_kind(chosen[0])} weights"
    others = [f"--{_kind(name)} selects {name}" for name in there if name not in chosen]
    log.info("%s: using %s", file, "; ".join([f"{chosen[0]}, {average}", *others]))
    return chosen[0], there[chosen[0]]


def _networks(found: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The networks of a checkpoint, wherever they lie: dotted key and weights."""
    for name, value in found.items() if isinstance(found, Mapping) else ():
        key = f"{path}{name}"
        if not isinstance(value, Mapping):
            continue
        if any(str(each).endswith("patch_embedding.weight") for each in value):
            if not _all_tensors(value):
                raise ValueError(f"{key} holds more than tensors by name")
            yield key, value
        elif key.count(".") < _DEEPEST:
            yield from _networks(value, f"{key}.")


def _kind(key: str) -> str:
    if _CRITIC.search(key):
        return "critic"
    return "ema" if _EMA.search(key) else "raw"


def _top(found: Any) -> str:
    if not isinstance(found, Mapping):
        return type(found).__name__
    return ", ".join(map(str, list(found)[:5]))


def _require_stock(source: Path) -> None:
    """Other code has no class for a network with weights that Wan has not."""
    name = read_config(source).get("_class_name")
    if name != _STOCK:
        raise ValueError(
            f"{source}: a {name} is not exported: its weights are not those of stock Wan, and other"
            " code has no class for it; sample it here"
        )


def _require_sound(weights: Weights) -> None:
    unfit = unfit_weight(weights.items())
    if not unfit and all(fault(each, varied=True) for each in weights.values() if each.ndim > 1):
        unfit = "every matrix is constant"  # one is zero in a network that was never trained
    if unfit:
        raise ValueError(f"{unfit}; such a network generates nothing: take another checkpoint")


def _all_tensors(found: Any) -> bool:
    if not isinstance(found, Mapping) or not found:
        return False
    return all(isinstance(k, str) and isinstance(value, Tensor) for k, value in found.items())


def _save(weights: Weights, config: Mapping[str, Any], folder: Path) -> None:
    """config.json and safetensors, as diffusers writes them; every tensor keeps its dtype."""
    with torch.device("meta"):
        network = Wan(**config)
    network.load_state_dict(weights, assign=True)
    with writing(folder):
        network.save_pretrained(folder)


def _require_free(folder: Path) -> None:
    """Checked before anything large is read."""
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; name another, or remove it")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder that is renamed to its name when complete; a failure leaves nothing."""
    growing = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    growing.mkdir(parents=True)
    try:
        yield growing
        os.rename(growing, folder)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
