"""Content hashes of encoders, independent of how they were saved."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from lightning_modules.networks.pipeline_folder import read_config, weight_files


def digest(*parts: bytes) -> str:
    """16 hex digits of SHA-256."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def digest_of_weights(part: Path) -> str:
    """Hash of a part's config and tensors, independent of sharding and library versions."""
    return _short(_content(part))


def digest_of_files(folder: Path) -> str:
    """Hash of the names and bytes of a folder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = ((file.relative_to(folder).as_posix().encode(), file.read_bytes()) for file in files)
    return _short(part for pair in parts for part in pair)


Buffer = bytes | np.ndarray


def _content(part: Path) -> Iterable[Buffer]:
    config = read_config(part)
    settings = {key: value for key, value in config.items() if not _about_the_writer(key)}
    yield json.dumps(settings, sort_keys=True).encode()
    where = {}
    for file in weight_files(part):
        with safe_open(file, "pt") as opened:
            where |= dict.fromkeys(opened.keys(), file)
    for name, file in sorted(where.items()):
        with safe_open(file, "pt") as opened:
            tensor = opened.get_tensor(name)
        yield f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        yield tensor.flatten().view(torch.uint8).numpy()


def _about_the_writer(key: str) -> bool:
    """Keys with versions and paths that transformers and diffusers write into a config."""
    return key.startswith("_") or key == "transformers_version"


def _short(parts: Iterable[Buffer]) -> str:
    """Hash of the parts' hashes, so that large tensors are not concatenated."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(hashlib.sha256(part).digest())
    return hashed.hexdigest()[:16]
