"""Components of a Wan 2.1 pipeline on disk, in diffusers format: located, checked, then loaded.

A part (`transformer/`, `vae/`, `text_encoder/`) is a `config.json` with safetensors: one file, or
shards with an index; `tokenizer/` is a vocabulary with its config. Incomplete downloads are
detected from file names, safetensors headers and JSON, before any weights are read. Nothing is
unpickled and no code of a folder is run.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

__all__ = [
    "check_pipeline",
    "load_part",
    "load_tokenizer",
    "locate",
    "read_config",
    "require_tokenizer",
    "weight_files",
]

EXAMPLE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_INDEX = ".safetensors.index.json"
_STORED = ("F64", "F32", "F16", "BF16")
_LFS_POINTER = b"version https://git-lfs"
_PIPELINE = "model_index.json"
_OTHER = f"give a Wan 2.1 text-to-video pipeline, such as {EXAMPLE}"
_WAN22 = {
    "transformer_2": "a second transformer for the lower noise levels",
    "boundary_ratio": "two experts, one for high and one for low noise",
    "expand_timesteps": "a time step for every token",
}
_CURE = "download or copy the folder again, or run again what wrote it"


def locate(where: str | Path, *parts: str) -> Path:
    """The local folder of a pipeline given by its path or hub id.

    From the hub only `parts` are downloaded, unless cached; with HF_HUB_OFFLINE=1 nothing is.

    Raises:
        FileNotFoundError: no such folder, and no such pipeline in the hub or its cache.
        ValueError: another pipeline than Wan 2.1's text to video.
    """
    folder = Path(where)
    if folder.is_dir():
        check_pipeline(folder)
        return folder
    name = str(where)
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(
            f"{name}: no such folder; give a Wan 2.1 folder in diffusers format, or a hub id such"
            f" as {EXAMPLE}"
        )
    from huggingface_hub import snapshot_download

    wanted = [*(f"{part}/*" for part in parts), _PIPELINE]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # every error of the hub's is one of these
        includes = " ".join(f"--include '{pattern}'" for pattern in wanted)
        raise FileNotFoundError(
            f"{name}: no such folder, and not available from the hub ({_first_line(error)});"
            f" with network access run: hf download {name} {includes}, or give the path of a folder"
        ) from error
    check_pipeline(folder)
    return folder


def check_pipeline(folder: Path) -> None:
    """Refuse a pipeline, or a part of one, that by its model_index.json is not Wan 2.1's T2V.

    A folder without that file is a network alone, which its config.json describes.

    Raises:
        ValueError: another pipeline class; two experts, or a time step per token, as Wan 2.2 has.
    """
    for home in (folder, folder.resolve().parent):
        path = home / _PIPELINE
        if not path.is_file() or home != folder and folder.resolve().name not in _mapping(path):
            continue
        index = _mapping(path)
        if (kind := index.get("_class_name")) != "WanPipeline":
            raise ValueError(f"{path}: _class_name is {kind!r}, not WanPipeline: {_OTHER}")
        for key, what in _WAN22.items():
            value = index.get(key)
            if value not in (None, False, [None, None]):
                raise ValueError(f"{path}: {key} is {value!r}: {what}, as Wan 2.2 has; {_OTHER}")


def read_config(part: Path) -> dict[str, Any]:
    """The part's `config.json`.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is not a JSON mapping.
    """
    path = part / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: point to a diffusers folder of Wan 2.1, e.g. a snapshot of"
            f" {EXAMPLE}"
        )
    return _mapping(path)


def weight_files(part: Path) -> list[Path]:
    """The part's safetensors files, checked to be complete.

    Raises:
        FileNotFoundError: there are none, or shards of the index are missing.
        ValueError: a file is a git-lfs pointer, truncated, quantised, or lacks tensors of the
            index.
    """
    index = next(iter(sorted(part.glob(f"*{_INDEX}"))), None)
    promised = _promised(index) if index else {}
    files = (
        [part / name for name in sorted(promised)] if index else sorted(part.glob("*.safetensors"))
    )
    if not files:
        pickles = [*part.glob("*.bin"), *part.glob("*.pth")]
        why = (
            f"has only {pickles[0].name}, a pickle, which is never read; if you trust it, convert"
            " it: save_pretrained(..., safe_serialization=True)"
            if pickles
            else f"has no weights (*.safetensors): {_CURE}"
        )
        raise FileNotFoundError(f"{part}: {why}")
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{part}: {len(missing)} of {len(files)} weight files are missing"
            f" ({', '.join(missing[:3])}): {_CURE}"
        )
    if not index and "-of-" in files[0].name:
        raise FileNotFoundError(f"{part}: has shards, but no index (*{_INDEX}): {_CURE}")
    for file in files:
        if lacks := promised.get(file.name, set()) - _names(file):
            raise ValueError(
                f"{part}: {file.name} has no {min(lacks)}, which its index lists: {_CURE}"
            )
    return files


def require_tokenizer(folder: Path) -> None:
    """Refuse an incomplete tokenizer; loads nothing.

    Raises:
        FileNotFoundError: its vocabulary or config is missing.
        ValueError: a file is a git-lfs pointer, or not JSON where it should be.
    """
    vocabularies = [folder / name for name in ("tokenizer.json", "spiece.model")]
    vocabularies = [file for file in vocabularies if file.is_file()]
    config = folder / "tokenizer_config.json"
    if not vocabularies:
        raise FileNotFoundError(f"{folder}: has neither tokenizer.json nor spiece.model: {_CURE}")
    if not config.is_file():
        raise FileNotFoundError(f"{folder}: has no tokenizer_config.json: {_CURE}")
    for file in (config, *vocabularies):
        _refuse_pointer(file)
        if file.suffix == ".json":
            _mapping(file)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, by transformers.

    Raises:
        FileNotFoundError, ValueError: it is incomplete, damaged, or not a tokenizer.
    """
    from transformers import AutoTokenizer

    require_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises no more specific class
        raise ValueError(
            f"{folder}: a tokenizer that does not load ({_first_line(error)}): {_CURE}"
        ) from error


def load_part(kind: type, part: Path, **options: Any) -> nn.Module:
    """`kind.from_pretrained(part, **options)`, refusing missing weights and superfluous ones.

    Args:
        kind: a model class of diffusers or transformers, or ours.
        part: a folder with config.json and safetensors.
        options: of `from_pretrained`, such as the dtype.

    Raises:
        FileNotFoundError, ValueError: the folder is incomplete, damaged, or does not fit its
            config.json; the libraries would initialise missing weights at random, and leave out
            the layers that the config does not count.
    """
    read_config(part)
    weight_files(part)
    try:
        model, found = kind.from_pretrained(
            part, output_loading_info=True, local_files_only=True, use_safetensors=True, **options
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{part}: weights that do not load ({_first_line(error)}): {_CURE}"
        ) from error
    if found["missing_keys"]:
        name = min(found["missing_keys"])
        raise ValueError(f"{part}: has no weights for {name}: {_CURE}")
    if found["unexpected_keys"]:
        name = min(found["unexpected_keys"])
        raise ValueError(
            f"{part}: has weights that its config.json knows nothing of ({name}), so it is not of"
            f" this network: {_CURE}"
        )
    return model


def _mapping(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error}): {_CURE}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a mapping of settings: {_CURE}")
    return content


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(
                f"{file.parent}: {file.name} is a git-lfs pointer, not the file itself; run there:"
                " git lfs pull"
            )


def _promised(index: Path) -> dict[str, set[str]]:
    """Tensor names by file name, from the index."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: not readable as an index: {_CURE}") from error
    promised: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        promised.setdefault(file, set()).add(name)
    return promised


def _names(file: Path) -> set[str]:
    """Names of the tensors of a safetensors file; refuses an incomplete or a quantised file."""
    _refuse_pointer(file)
    try:
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            kinds = {name: opened.get_slice(name).get_dtype() for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file.parent}: {file.name} is truncated or damaged ({_first_line(error)};"
            f" {file.stat().st_size} bytes): {_CURE}"
        ) from error
    if name := next((name for name, kind in kinds.items() if kind not in _STORED), None):
        raise ValueError(
            f"{file}: {name} is stored as {kinds[name]}: quantised weights are not read, take those"
            f" in one of {', '.join(_STORED)}"
        )
    return set(kinds)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Where safetensors are written. Raises OSError, with the folder, for what safetensors reports
    of the system: a full disk would be told from a damaged file by nothing else.
    """
    try:
        yield
    except SafetensorError as error:
        if (system := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        number = int(system[1])
        raise OSError(number, os.strerror(number), str(folder)) from error
