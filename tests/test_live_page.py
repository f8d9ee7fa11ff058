"""The page in a real browser that can reach nothing but this server."""

import asyncio
import os
from pathlib import Path

import pytest
from browser import CHROMIUM, opened
from test_live import served
from tiny_student import CAPTIONS, student

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)"),
    pytest.mark.slow,
]
PICTURE = "[...document.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL()).join()"
FRAME = "Number(document.body?.dataset.frame ?? -1)"
STATE = "document.body?.dataset.state"


async def clicked(tab, button):
    await tab.run(f"document.getElementById('{button}').click()")


def test_a_person_watches_changes_records_and_replays(tmp_path):
    shots = Path(os.environ.get("LIVE_SHOTS", tmp_path))

    async def watch():
        students = [student(fps=30), student(fps=30, steps=1)]
        async with served(tmp_path / "sessions", students) as (_, _, client):
            home = str(client._base_url)
            async with opened(tmp_path, home) as tab:
                await tab.until(f"{STATE} === 'ready'")
                assert await tab.run("document.getElementById('prompt').value") == CAPTIONS[0]
                await tab.shot(shots / "page-at-rest.png")
                await tab.run("document.getElementById('record').checked = true")
                await clicked(tab, "start")
                await tab.until(f"{FRAME} >= 4")
                before = await tab.run(PICTURE)
                await tab.until(f"{FRAME} >= 8")
                assert await tab.run(PICTURE) != before, "frames move"
                await tab.shot(shots / "page-side-by-side.png")
                await tab.run(f"document.getElementById('prompt').value = {CAPTIONS[1]!r}")
                await clicked(tab, "change")
                await tab.run(
                    "document.getElementById('steps').value = '4';"
                    "document.getElementById('steps').dispatchEvent(new Event('change'))"
                )
                seen = await tab.run(FRAME)
                await tab.until(f"{FRAME} >= {seen + 6}")
                await clicked(tab, "pause")
                await tab.until(f"{STATE} === 'paused'")
                held = await tab.run(FRAME)
                await clicked(tab, "pause")
                await tab.until(f"{FRAME} > {held}")
                await clicked(tab, "stop")
                await tab.until(f"{STATE} === 'stopped'")
                await tab.until("!document.getElementById('replay').disabled")
                await clicked(tab, "replay")
                await tab.until(f"{STATE} === 'replayed'")
                said = await tab.run("document.getElementById('message').textContent")
                assert said.startswith("equal: all")
                for word in ("frames/s", "first frame", "memory", "steps"):
                    assert word in await tab.run("document.getElementById('meters').textContent")
                await tab.call("Emulation.setDeviceMetricsOverride", width=400, height=900,
                               deviceScaleFactor=1, mobile=True)  # fmt: skip
                assert await tab.run("document.documentElement.scrollWidth") <= 400
                await tab.shot(shots / "page-narrow.png")
                assert tab.problems == []

    asyncio.run(watch())
