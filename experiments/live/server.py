"""The web server of the live page: routes, limits, and a connection's messages both ways."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from experiments.live.access import guard
from experiments.live.engine import Engine
from experiments.live.protocol import LONGEST, Replay, parse, said
from experiments.live.recording import as_png, read_recording

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
HEARTBEAT_S = 5.0
CONNECTIONS = 100
WAITING_ERRORS = 64  # of a client that sends nonsense and does not read the answers
ENGINE: web.AppKey[Engine] = web.AppKey("engine")
ABOUT: web.AppKey[dict[str, Any]] = web.AppKey("about")
CONNECTED: web.AppKey[dict[web.WebSocketResponse, Outbox]] = web.AppKey("connected")
STOPPING_S = 1.0  # for a page to take what was said last


def application(
    engine: Engine, about: dict[str, Any], host: str, token: str | None
) -> web.Application:
    """The application; the engine must have been started.

    Args:
        about: what the page is told of the students.
        host: the address that will be bound.
        token: see `access.guard`.
    """
    app = web.Application(middlewares=[guard(host, token)], client_max_size=LONGEST)
    app[ENGINE], app[ABOUT], app[CONNECTED] = engine, about, {}
    app.router.add_get("/", _page("index.html"))
    for file in ("live.js", "live.css"):
        app.router.add_get(f"/static/{file}", _page(file))
    app.router.add_get("/favicon.ico", _nothing)
    app.router.add_get("/about", _about)
    app.router.add_get("/health", _health)
    app.router.add_get("/pictures/{number}.png", _picture)
    app.router.add_get("/recordings", _recordings)
    app.router.add_get("/recordings/{name}", _recording)
    app.router.add_get("/live", _live)
    app.on_shutdown.append(_hang_up)
    return app


async def serve(app: web.Application, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve until a signal to stop.

    Args:
        ready: hears the port, once it is bound.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except socket.gaierror as error:
            raise ValueError(
                f"--host: {host}: {error.strerror}; give an address of this machine"
            ) from error
        ready(runner.addresses[0][1])
        await stop.wait()
    finally:
        await asyncio.to_thread(app[ENGINE].close)
        await runner.cleanup()


def _page(name: str) -> Callable[[web.Request], Any]:
    async def answer(_: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE / name)

    return answer


async def _nothing(_: web.Request) -> web.Response:
    return web.Response(status=204)


async def _about(request: web.Request) -> web.Response:
    return web.json_response(request.app[ABOUT])


async def _health(request: web.Request) -> web.Response:
    return web.json_response({"viewers": request.app[ENGINE].viewers})


async def _picture(request: web.Request) -> web.Response:
    """A first frame that a session may begin with."""
    pictures = request.app[ENGINE].students[0].pictures
    number = request.match_info["number"]
    if not number.isascii() or not number.isdecimal() or int(number) >= len(pictures):
        raise web.HTTPNotFound(text="no such picture")
    return web.Response(body=as_png(pictures[int(number)].frame), content_type="image/png")


def _listed(engine: Engine) -> dict[str, Path]:
    """Recordings by name: nothing else in the folder, or beside it, can be asked for."""
    return {file.stem: file for file in sorted(engine.folder.glob("*.jsonl"))}


async def _recordings(request: web.Request) -> web.Response:
    return web.json_response(list(_listed(request.app[ENGINE])))


async def _recording(request: web.Request) -> web.StreamResponse:
    file = _listed(request.app[ENGINE]).get(request.match_info["name"].removesuffix(".jsonl"))
    if file is None:
        raise web.HTTPNotFound(text="no such recording")
    return web.FileResponse(file, headers={"Content-Disposition": "attachment"})


async def _live(request: web.Request) -> web.StreamResponse:
    """One connection: one viewer."""
    app, loop = request.app, asyncio.get_running_loop()
    if "Origin" not in request.headers:
        return web.Response(status=403, text="a page says where it comes from")
    if len(app[CONNECTED]) >= CONNECTIONS:
        return web.Response(status=503, text="too many connections")
    socket = web.WebSocketResponse(timeout=STOPPING_S, heartbeat=HEARTBEAT_S, max_msg_size=LONGEST)
    await socket.prepare(request)
    outbox = app[CONNECTED][socket] = Outbox(socket)

    def send(message: str | bytes) -> None:
        loop.call_soon_threadsafe(outbox.queue.put_nowait, message)

    viewer = app[ENGINE].join(send)
    try:
        async for message in socket:
            try:
                if message.type is not WSMsgType.TEXT:
                    raise ValueError("only text is understood")
                command = parse(message.data)
                if isinstance(command, Replay):
                    command = await asyncio.to_thread(_read, app[ENGINE], command.recording)
                app[ENGINE].tell(viewer, command)
            except ValueError as error:
                if outbox.queue.qsize() < WAITING_ERRORS:
                    send(said("error", text=str(error)))
    finally:
        app[ENGINE].leave(viewer)
        del app[CONNECTED][socket]
        outbox.sending.cancel()
    return socket


def _read(engine: Engine, name: str) -> Any:
    file = _listed(engine).get(name)
    if file is None:
        raise ValueError(f"no recording {name!r}")
    return read_recording(file)


class Outbox:
    """The messages to a connection, in their order; what waits is bounded by a viewer's credit."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.queue: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self.sending = asyncio.create_task(self._send(socket))

    async def _send(self, socket: web.WebSocketResponse) -> None:
        """Waits while the connection is full; None is the end."""
        with suppress(ConnectionError):
            while (message := await self.queue.get()) is not None:
                await (socket.send_str if isinstance(message, str) else socket.send_bytes)(message)


async def _hang_up(app: web.Application) -> None:
    connected = dict(app[CONNECTED])
    for outbox in connected.values():
        outbox.queue.put_nowait(None)
    if connected:
        await asyncio.wait([each.sending for each in connected.values()], timeout=STOPPING_S)
    await asyncio.gather(*(socket.close(code=1001, message=b"stopped") for socket in connected))
