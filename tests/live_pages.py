"""A server of the live page on a free port, and what its page does, without a browser."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress

from aiohttp import ClientConnectionResetError, ClientSession, WSMsgType, web
from tiny_student import CAPTIONS, student

from experiments.live.engine import Engine
from experiments.live.protocol import HEADER, KEY_BITS
from experiments.live.server import application
from experiments.live.show import about

START = {"type": "start", "prompt": CAPTIONS[0], "seed": 5, "record": True}


class Page:
    """What a page does, without a browser: it shows every frame at once."""

    def __init__(self, socket):
        self.socket, self.frames, self.said = socket, [], []
        self.keys = {}  # by lane and frame

    async def tell(self, **message):
        with suppress(ClientConnectionResetError):  # the server closes: what it said is still read
            await self.socket.send_str(json.dumps(message))

    async def hear(self, until, shows=True):
        """Receive until ``until(self)``."""
        while not until(self):
            message = await asyncio.wait_for(self.socket.receive(), 120)
            if message.type is WSMsgType.TEXT:
                self.said.append(json.loads(message.data))
                continue
            assert message.type is WSMsgType.BINARY, message
            _, lane, keys, frame, block, _, _, _, digest = HEADER.unpack(message.data[:32])
            assert message.data[32:34] == b"\xff\xd8", "a JPEG"
            self.frames.append((lane, frame, block, digest))
            self.keys[lane, frame] = {key for key, bit in KEY_BITS.items() if keys & bit}
            if shows:
                await self.tell(type="shown", frame=frame)

    def last(self, kind):
        return next((each for each in reversed(self.said) if each["type"] == kind), None)


@asynccontextmanager
async def served(folder, students=None, sessions=20):
    """A server on a free port: its engine, and a function that opens pages."""
    students = students or [student()]
    engine = Engine(students, sessions, folder)
    engine.start()
    runner = web.AppRunner(application(engine, about(students), "127.0.0.1", None))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    home = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with ClientSession(home) as client:

            async def page(origin=home):
                socket = await client.ws_connect(
                    "/live", headers={"Origin": origin} if origin else {}
                )
                return Page(socket)

            yield engine, page, client
    finally:
        await asyncio.to_thread(engine.close)
        await runner.cleanup()
