"""The identity of an encoder: a hash of what it is made of."""

import hashlib
from pathlib import Path


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


class WanFolder:
    """A part of a diffusers folder: read when first used, known by the hash of its files."""

    def __init__(self, folder: str | Path, *needed: str) -> None:
        self._folder = Path(folder)
        for name in needed:
            if not (self._folder / name).exists():
                raise FileNotFoundError(
                    f"{self._folder / name} is missing: point to a diffusers folder of Wan 2.1, "
                    "e.g. a snapshot of Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
                )

    def hash_of(self, *names: str) -> str:
        digest = hashlib.sha256()
        for name in names:
            for file in sorted(p for p in (self._folder / name).rglob("*") if p.is_file()):
                digest.update(file.relative_to(self._folder).as_posix().encode() + b"\0")
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]
