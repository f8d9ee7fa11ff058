"""The messages of the live page, both ways; parsed strictly.

From the page: JSON objects of at most `LONGEST` bytes, ``{"type": "start", "prompt": ...}``. To the
page: JSON objects with a ``type`` (``started``, ``queued``, ``stats``, ``error``, ``ended``), and
binary messages, a header of 32 bytes (`HEADER`) before a JPEG.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datamodules.cameras import MOTIONS
from experiments.generation.events import NewKeys, NewPrompt, NewSteps
from experiments.runs.config import nearest
from experiments.runs.signature import bind
from lightning_modules.ranges import NonNegativeInt, PositiveInt, Seed, SolverSteps

LONGEST = 4096
VERSION = 1
HEADER = struct.Struct("<BBHIIIffQ")
"""Version, lane, keys, frame, block, 0, ms to denoise and to decode the block, digest."""
KEY_BITS = {key: 1 << index for index, key in enumerate(MOTIONS)}
"""Of the keys in the header: those that moved the camera of the frame's block."""


@dataclass(frozen=True)
class Start:
    """A new session; one that runs is ended.

    Args:
        prompt: of the first block.
        seed: of the noise.
        steps: sampling steps; None: as the student was trained.
        lanes: students side by side.
        record: write a recording.
        picture: number of the first frame, of those the page was told of; None: it is made, too.
    """

    prompt: str
    seed: Seed = 0
    steps: SolverSteps | None = None
    lanes: PositiveInt = 1
    record: bool = False
    picture: NonNegativeInt | None = None


@dataclass(frozen=True)
class Replay:
    """A recording, by its name in the listing."""

    recording: str


@dataclass(frozen=True)
class Shown:
    """All frames up to this one have been shown: the page has room for more."""

    frame: NonNegativeInt


@dataclass(frozen=True)
class Pause:
    """Make nothing until `Resume`."""


@dataclass(frozen=True)
class Resume:
    """Go on."""


@dataclass(frozen=True)
class Stop:
    """End the session."""


Command = Start | Replay | Shown | Pause | Resume | Stop | NewPrompt | NewSteps | NewKeys
COMMANDS: dict[str, type] = {
    "start": Start,
    "replay": Replay,
    "shown": Shown,
    "pause": Pause,
    "resume": Resume,
    "stop": Stop,
    "prompt": NewPrompt,
    "steps": NewSteps,
    "keys": NewKeys,
}


def parse(message: str) -> Command:
    """The command in a message of the page.

    Raises:
        ValueError: anything else, by the key that is wrong.
    """
    if len(message.encode(errors="surrogatepass")) > LONGEST:
        raise ValueError(f"a message of more than {LONGEST} bytes")
    try:
        found = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(kind := found.pop("type", None), str):
        raise ValueError("not an object with a type")
    if kind not in COMMANDS:
        raise ValueError(f"no command {kind!r}{nearest(kind, COMMANDS)}")
    for key, value in found.items():
        if isinstance(value, str) and not value.isprintable():
            raise ValueError(f"{kind}.{key}: characters that cannot be shown")
    return COMMANDS[kind](**bind(COMMANDS[kind], found, section=kind))


def said(kind: str, **content: Any) -> str:
    """A JSON message to the page."""
    return json.dumps({"type": kind, **content})


def packed(
    lane: int, frame: int, block: int, keys: Iterable[str], seconds: tuple[float, float],
    digest: str, image: bytes,
) -> bytes:  # fmt: skip
    """A frame for the page.

    Args:
        keys: that moved the camera of its block.
        seconds: to denoise and to decode the block.
        digest: 16 hex digits.
    """
    bits = sum(KEY_BITS[key] for key in keys)
    numbers = (VERSION, lane, bits, frame % 2**32, block % 2**32, 0)
    milliseconds = (1000 * each for each in seconds)
    return HEADER.pack(*numbers, *milliseconds, int(digest, 16)) + image
