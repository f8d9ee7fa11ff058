"""A page's server under twenty viewers at once, good, slow, gone and hostile, for a long while.

``SOAK_SECONDS=600 pytest -m slow tests/test_live_soak.py`` is ten minutes of it.
"""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from aiohttp import ClientError, ClientSession, WSMsgType, WSServerHandshakeError
from tiny_student import CAPTIONS, walker, write_run

from experiments.live.protocol import HEADER, LONGEST

SECONDS = float(os.environ.get("SOAK_SECONDS", 30))
EVERY_S = SECONDS / 30  # between looks at the memory
NONSENSE = (
    "", "null", "[]", "{", '{"type": 3}', '{"type": "open"}', '{"type": "start"}', "x" * 4000,
    '{"type": "start", "prompt": "a one", "seed": -1}',
    '{"type": "start", "prompt": "a one", "lanes": 3}',
    '{"type": "start", "prompt": "a one", "picture": 0}',
    '{"type": "replay", "recording": "../../../etc/passwd"}',
    '{"type": "keys", "keys": ["up", "up"]}', '{"type": "prompt", "text": "\\u0000"}',
    '{"type": "shown", "frame": -4}', '{"type": "steps", "steps": 1e99}',
)  # fmt: skip
STRANGERS = (
    {}, {"Origin": "null"}, {"Origin": "http://evil.example"},
    {"Origin": "HOME", "Host": "evil.example"}, {"Origin": "HOME.evil.example"},
)  # fmt: skip


class Crowd:
    """Viewers of one server until an end; what they found.

    Args:
        home: the server's address.
        client: of aiohttp.
        end: when they go, by the monotonic clock.
    """

    def __init__(self, home, client, end):
        self.home, self.client, self.end = home, client, end
        self.frames, self.refused, self.errors = 0, 0, 0

    @property
    def on(self):
        return time.monotonic() < self.end

    async def connected(self):
        return await self.client.ws_connect("/live", headers={"Origin": self.home})

    async def good(self, number, slow=0.0):
        """Sees every frame, in its turn, of one session after the other; changes everything."""
        chance = random.Random(number)
        socket = await self.connected()
        while self.on:
            start = {"type": "start", "prompt": CAPTIONS[number % 2], "seed": chance.randrange(99)}
            await socket.send_json(start)
            expected, last = 0, chance.randrange(40, 400)
            while expected <= last and self.on:
                message = await socket.receive(timeout=60)
                assert message.type in (WSMsgType.TEXT, WSMsgType.BINARY), message
                if message.type is WSMsgType.TEXT:
                    assert json.loads(message.data)["type"] in ("started", "stats", "ended")
                    continue
                frame = HEADER.unpack(message.data[: HEADER.size])[3]
                assert frame == expected, "a frame was lost, or is of another session"
                expected, self.frames = expected + 1, self.frames + 1
                await asyncio.sleep(slow * chance.random())
                if chance.random() < 0.1:
                    await socket.send_json(self.change(chance))
                await socket.send_json({"type": "shown", "frame": frame})
            await socket.send_json({"type": "stop"})
            await self.ended(socket)
        await socket.close()

    @staticmethod
    def change(chance):
        return chance.choice([
            {"type": "steps", "steps": chance.choice([1, 2, 4])},
            {"type": "prompt", "text": chance.choice(CAPTIONS), "how": "rewrite"},
            {"type": "prompt", "text": chance.choice(CAPTIONS), "how": "cut"},
            {"type": "keys", "keys": chance.sample(["w", "a", "j", "l"], 2)},
            {"type": "keys", "keys": []},
        ])  # fmt: skip

    async def ended(self, socket):
        """What was under way is heard, and then that it has ended."""
        while True:
            message = await socket.receive(timeout=60)
            if message.type is WSMsgType.TEXT and json.loads(message.data)["type"] == "ended":
                return

    async def deaf(self):
        """Starts a session and reads nothing of it."""
        while self.on:
            socket = await self.connected()
            await socket.send_json({"type": "start", "prompt": CAPTIONS[0]})
            await asyncio.sleep(2)
            with suppress(ClientError, ConnectionError):
                await socket.close()

    async def gone(self):
        """Vanishes in the middle of a frame."""
        while self.on:
            socket = await self.connected()
            await socket.send_json({"type": "start", "prompt": CAPTIONS[1], "record": True})
            await socket.receive(timeout=60)
            socket._response.connection.transport.abort()
            await asyncio.sleep(0.2)

    async def hostile(self):
        """Says what no page says; the answer is an error, or the end of the connection."""
        while self.on:
            socket = await self.connected()
            for text in NONSENSE:
                await socket.send_str(text)
                message = await socket.receive(timeout=60)
                assert json.loads(message.data)["type"] == "error", (text, message)
                self.errors += 1
            await socket.send_bytes(b"\x00" * 64)
            assert json.loads((await socket.receive(timeout=60)).data)["type"] == "error"
            with suppress(ClientError, ConnectionError):
                await socket.send_str("x" * (LONGEST + 1))
            message = await socket.receive(timeout=60)
            assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR), message
            await asyncio.sleep(0.1)

    async def stranger(self):
        """Comes from elsewhere, and is not let in."""
        while self.on:
            for headers in STRANGERS:
                own = {name: value.replace("HOME", self.home) for name, value in headers.items()}
                with pytest.raises(WSServerHandshakeError) as caught:
                    await self.client.ws_connect("/live", headers=own)
                assert caught.value.status == 403
                self.refused += 1
            await asyncio.sleep(0.2)


async def watched(home, server):
    """A crowd for `SECONDS`: what it found, the server's memory meanwhile, viewers at the end."""
    async with ClientSession(home) as client:
        crowd = Crowd(home, client, time.monotonic() + SECONDS)
        everyone = asyncio.gather(
            *(crowd.good(number) for number in range(12)),
            *(crowd.good(number, slow=1.0) for number in range(12, 15)),
            crowd.deaf(), crowd.deaf(), crowd.gone(), crowd.hostile(), crowd.stranger(),
        )  # fmt: skip
        held = []
        while crowd.on and not everyone.done():
            await asyncio.sleep(EVERY_S)
            held.append(server.memory_info().rss)
        await everyone
        end = time.monotonic() + 10
        while (await (await client.get("/health")).json())["viewers"] and time.monotonic() < end:
            await asyncio.sleep(0.1)
        return crowd, held, (await (await client.get("/health")).json())["viewers"]


@pytest.mark.slow
def test_twenty_viewers_for_a_long_while(tmp_path):
    run = write_run(tmp_path, walker())
    words = [sys.executable, "-m", "experiments", "live", str(run), "--recordings"]
    process = subprocess.Popen([*words, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
    try:
        home = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        crowd, held, left = asyncio.run(watched(home, psutil.Process(process.pid)))
        assert process.poll() is None
    finally:
        process.terminate()
        status = process.wait(60)
    told = f"{SECONDS:.0f} s: {crowd.frames} frames, {crowd.errors} errors, {crowd.refused} refused"
    print(f"{told}; memory {held[0] / 2**20:.0f} to {held[-1] / 2**20:.0f} MiB")
    assert status == 0 and left == 0
    assert crowd.frames > 5 * SECONDS and crowd.errors > 10 and crowd.refused > 10
    assert max(held[len(held) // 2 :]) < 1.05 * max(held[: len(held) // 2])
