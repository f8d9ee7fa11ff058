"""``live --measure``: what viewers get of a page's server, by clients in the place of browsers.

The server is the one that pages talk to, on loopback; a client takes every frame off the socket and
decodes no JPEG. Once one viewer takes frames as fast as they are made, once it draws them at the
clip's rate, as the page does, and presses keys; then several watch at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, web

from datamodules.atomic import write_text
from experiments.bench.clock import quantiles
from experiments.generation.student import Student
from experiments.live.engine import Engine
from experiments.live.meters import peak_memory
from experiments.live.protocol import HEADER, KEY_BITS
from experiments.live.server import application
from experiments.runs.provenance import revision

log = logging.getLogger(__name__)
KEY_EVERY_S = 1.5
CROWD = 20  # viewers at once


@dataclass
class Watched:
    """What a viewer saw; seconds after it asked to start.

    Args:
        drawn: when each frame was drawn.
        keys: seconds from a key to the first frame that it moved.
        blocks: seconds to make the last block, denoising and decoding.
    """

    drawn: list[float] = field(default_factory=list)
    keys: list[float] = field(default_factory=list)
    blocks: tuple[float, float] = (0.0, 0.0)

    @property
    def frames_per_s(self) -> float:
        """After the first frame."""
        return (len(self.drawn) - 1) / (self.drawn[-1] - self.drawn[0])


class Client:
    """A viewer without a browser.

    Args:
        socket: its connection.
        fps: at which it draws; None: as soon as a frame is there.
        key: that it presses for a while, again and again; None: none.
    """

    def __init__(
        self, socket: ClientWebSocketResponse, fps: float | None = None, key: str | None = None
    ) -> None:
        self._socket, self._fps, self._key = socket, fps, key
        self._down: float | None = None  # when the key that no frame has followed went down

    async def watch(self, prompt: str, picture: int | None, seconds: float) -> Watched:
        """Watch a session. Raises ValueError for what the server refuses."""
        found, start = Watched(), perf_counter()
        due = pressed = start
        await self._say("start", prompt=prompt, picture=picture)
        while (now := perf_counter()) < start + seconds or len(found.drawn) < 2:
            message = await self._socket.receive(timeout=60)
            if message.type is WSMsgType.TEXT:
                self._require_none(json.loads(message.data))
                continue
            if message.type is not WSMsgType.BINARY:
                raise ConnectionError(f"the server hung up ({message.type.name})")
            _, _, bits, frame, _, _, *milliseconds, _ = HEADER.unpack(message.data[: HEADER.size])
            found.blocks = tuple(each / 1000 for each in milliseconds)
            await asyncio.sleep(max(0.0, due - perf_counter()))
            now = perf_counter()
            found.drawn.append(now - start)
            due = max(due + 1 / self._fps, now) if self._fps else now
            await self._say("shown", frame=frame)
            if self._down is not None and bits & KEY_BITS[self._key]:
                found.keys.append(now - self._down)
                self._down = None
                await self._say("keys", keys=[])
            elif self._key and self._down is None and now - pressed > KEY_EVERY_S:
                self._down = pressed = now
                await self._say("keys", keys=[self._key])
        await self._say("stop")
        return found

    async def _say(self, kind: str, **content: Any) -> None:
        await self._socket.send_str(json.dumps({"type": kind, **content}))

    def _require_none(self, message: dict[str, Any]) -> None:
        if message["type"] in ("error", "ended"):
            raise ValueError(message.get("text") or message.get("reason"))


def measure(
    students: Sequence[Student], about: dict[str, Any], seconds: float, folder: Path, file: Path
) -> None:
    """Measure, say and write what viewers get of the first student.

    Args:
        students: warmed up.
        about: what a page is told of them.
        seconds: of each of the three measurements.
        folder: for recordings; none is written.
        file: of the JSON.
    """
    found = asyncio.run(_measured(Engine(students, CROWD, folder), about, seconds))
    student = students[0]
    found |= {
        "student": student.name,
        "identity": student.identity,
        "steps": student.steps,
        "fps": student.fps,
        "device": str(student.device),
        "peak_memory": peak_memory(student.device),
        "revision": revision(),
    }
    write_text(file, json.dumps(found, indent=1) + "\n")
    for line in told(found):
        log.info("%s", line)
    log.info("written: %s", file)


async def _measured(engine: Engine, about: dict[str, Any], seconds: float) -> dict[str, Any]:
    student = engine.students[0]
    prompt, picture = (student.captions or ("",))[0], None
    if student.pictures:
        prompt, picture = student.pictures[0].caption or prompt, 0
    key = student.camera.keys[0] if student.camera else None
    async with _served(engine, about) as join:
        free = await Client(await join()).watch(prompt, picture, seconds)
        drawn = await Client(await join(), student.fps, key).watch(prompt, picture, seconds)
        clients = [Client(await join()) for _ in range(CROWD)]
        crowd = await asyncio.gather(*(each.watch(prompt, picture, seconds) for each in clients))
    return {
        "first_frame_s": free.drawn[0],
        "frames_per_s": free.frames_per_s,
        "block_s": dict(zip(("denoise", "decode"), free.blocks, strict=True)),
        "drawn_per_s": drawn.frames_per_s,
        "key_to_picture_s": quantiles(drawn.keys) if drawn.keys else None,
        "crowd": {
            "viewers": CROWD,
            "frames_per_s": float(np.sum([each.frames_per_s for each in crowd])),
            "least_frames_per_s": min(each.frames_per_s for each in crowd),
            "slowest_first_frame_s": max(each.drawn[0] for each in crowd),
        },
    }


@asynccontextmanager
async def _served(engine: Engine, about: dict[str, Any]) -> AsyncIterator[Any]:
    """A function that connects to the engine's server, which lives on a free port meanwhile."""
    app = application(engine, about, "127.0.0.1", None)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    engine.start()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        home = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with ClientSession(home) as client:
            yield lambda: client.ws_connect("/live", headers={"Origin": home})
    finally:
        await asyncio.to_thread(engine.close)
        await runner.cleanup()


def told(found: dict[str, Any]) -> list[str]:
    """The measurement in lines."""
    crowd, keys, block = found["crowd"], found["key_to_picture_s"], found["block_s"]
    lines = [
        f"one viewer: first frame after {found['first_frame_s']:.3f} s, then"
        f" {found['frames_per_s']:.1f} frames/s as fast as they are made (a block"
        f" {1000 * block['denoise']:.1f} ms, decoding {1000 * block['decode']:.1f} ms)",
        f"at the clip's rate: {found['drawn_per_s']:.1f} of {found['fps']:g} frames/s",
        f"{crowd['viewers']} viewers: {crowd['frames_per_s']:.1f} frames/s in all, the slowest"
        f" {crowd['least_frames_per_s']:.1f}; the last of them saw its first frame after"
        f" {crowd['slowest_first_frame_s']:.3f} s",
        f"peak memory {found['peak_memory']}",
    ]
    if keys:
        told = f"; key to picture {1000 * keys['median']:.0f} ms, 90%: {1000 * keys['p90']:.0f} ms"
        lines[1] += told
    return lines
