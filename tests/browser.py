"""A headless Chromium, driven by its DevTools protocol: no package, no download."""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
from contextlib import asynccontextmanager

from aiohttp import ClientSession

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--mute-audio",
    "--remote-debugging-port=0", "--window-size=1100,800",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]  # fmt: skip


class Tab:
    """One page of the browser."""

    def __init__(self, socket):
        self._socket, self._ids, self.problems = socket, itertools.count(1), []

    async def call(self, method, **parameters):
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await asyncio.wait_for(self._socket.receive(), 120)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            kind = message.get("method")
            if kind == "Runtime.exceptionThrown" or (
                kind == "Log.entryAdded" and message["params"]["entry"]["level"] == "error"
            ):
                self.problems.append(message["params"])

    async def run(self, script):
        """The value of a JavaScript expression."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True,
                                returnByValue=True)  # fmt: skip
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script, limit_s=120):
        async with asyncio.timeout(limit_s):
            while not (value := await self.run(script)):
                await asyncio.sleep(0.02)
        return value

    async def shot(self, file):
        found = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(found["data"]))


@asynccontextmanager
async def opened(folder, url):
    """The page at an address, in a browser of its own that reaches nothing but 127.0.0.1."""
    profile = folder / "profile"
    browser = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port_file = profile / "DevToolsActivePort"
        async with asyncio.timeout(120):
            while not port_file.is_file() or not port_file.read_text().strip():
                assert browser.poll() is None, "the browser does not start"
                await asyncio.sleep(0.05)
        home = f"http://127.0.0.1:{port_file.read_text().split()[0]}"
        async with ClientSession() as client:
            targets = await (await client.get(f"{home}/json")).json()
            (target,) = [each for each in targets if each["type"] == "page"]
            async with client.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await tab.call(f"{domain}.enable")
                await tab.call("Page.navigate", url=url)
                yield tab
    finally:
        browser.terminate()
        browser.wait()
