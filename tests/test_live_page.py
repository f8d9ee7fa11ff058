"""The page in a real browser that can reach nothing but this server."""

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, opened
from test_live import served
from tiny_student import CAPTIONS, student, walker

from experiments.generation.student import Picture
from experiments.live.recording import read_recording

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)"),
    pytest.mark.slow,
]
PICTURE = "[...document.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL()).join()"
FRAME = "Number(document.body?.dataset.frame ?? -1)"
STATE = "document.body?.dataset.state"
GREYS = (  # of the picture that is shown
    "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 32, 32).data]"
    ".filter((_, at) => at % 4 === 0).join()"
)
METERS = "document.getElementById('meters').textContent"


def said(grey):
    return ",".join(map(str, grey.ravel()))


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


CAPS = "[...document.querySelectorAll('kbd{}')].map((cap) => cap.dataset.key).join('')"
NOTE = "addEventListener('keydown', (event) => { window.kept = event.defaultPrevented; })"
DOWN, MOVES = CAPS.format(".down"), CAPS.format(".moves")
CODES = {"ArrowLeft": 37, "ArrowUp": 38, "a": 65, "d": 68, "s": 83, "w": 87}


async def key(tab, kind, name, **other):
    """A real key, as the keyboard's: `kind` is down or up."""
    text = {"text": name} if kind == "down" and len(name) == 1 else {}
    await tab.call("Input.dispatchKeyEvent", type=f"key{kind.title()}", key=name,
                   windowsVirtualKeyCode=CODES[name.lower() if len(name) == 1 else name],
                   **text, **other)  # fmt: skip


@asynccontextmanager
async def watched(folder, students):
    """The page of these students, in a browser."""
    async with (
        served(folder / "sessions", students) as (_, _, client),
        opened(folder, str(client._base_url)) as tab,
    ):
        await tab.until(f"{STATE} === 'ready'")
        yield tab


def test_a_person_walks_by_keys(tmp_path):
    shots = Path(os.environ.get("LIVE_SHOTS", tmp_path))

    async def walk():
        students = [walker(fps=30), walker(fps=30, window=5)]
        async with watched(tmp_path, students) as tab:
            hints = await tab.run("document.getElementById('keys').innerText")
            assert "W forward" in " ".join(hints.split()) and "J ← turn left" in hints
            assert "look up" not in hints, "its walks were made without"
            await key(tab, "down", "w")
            assert await tab.run(DOWN) == "", "nothing runs"
            await key(tab, "up", "w")
            await tab.run("document.getElementById('record').checked = true")
            await tab.run("document.getElementById('prompt').focus()")
            await tab.run("document.getElementById('controls').requestSubmit()")
            await tab.until(f"{FRAME} >= 2")
            await held_keys(tab, shots)
            await text_keeps_its_keys(tab)
            await focus_lost(tab)
            await clicked(tab, "stop")
            await tab.until(f"{STATE} === 'stopped'")
            assert await tab.run(MOVES) == ""
            assert await tab.run("document.getElementById('message').textContent") == ""
            await tab.until("!document.getElementById('replay').disabled")
            await clicked(tab, "replay")
            await tab.until(f"{MOVES} === 'wj'")
            await key(tab, "down", "s")
            assert await tab.run(DOWN) == "", "a replay is not changed"
            await key(tab, "up", "s")
            await tab.until(f"{STATE} === 'replayed'")
            said = await tab.run("document.getElementById('message').textContent")
            assert said.startswith("equal: all")
            assert await tab.run("document.documentElement.scrollWidth <= innerWidth")
            assert tab.problems == []

    asyncio.run(walk())
    (file,) = (tmp_path / "sessions").glob("*.jsonl")
    events = read_recording(file).events
    in_turn = [event for block in sorted(events) for event in events[block]]
    keys = [("w",), ("j", "w"), ("w",), (), ("d",), (), "steps", ("s",), ()]
    assert [getattr(event, "keys", "steps") for event in in_turn] == keys


async def held_keys(tab, shots):
    """W, then the left arrow beside it, until the picture has followed."""
    await key(tab, "down", "w")
    await tab.until(f"{MOVES} === 'w'")
    before = await tab.run("scrollY")
    await tab.run(NOTE)
    await key(tab, "down", "ArrowLeft")
    await key(tab, "down", "ArrowLeft", autoRepeat=True)
    assert await tab.run(DOWN) == "wj"
    await tab.until(f"{MOVES} === 'wj'")
    assert await tab.run("window.kept") and await tab.run("scrollY") == before
    await tab.shot(shots / "page-mid-walk.png")
    await tab.until(f"/key to picture\\s*\\d+ ms/.test({METERS})")
    await key(tab, "up", "ArrowLeft")
    await tab.until(f"{MOVES} === 'w'")
    await key(tab, "up", "W")  # shift went down meanwhile
    await tab.until(f"{MOVES} === ''")
    await key(tab, "down", "a", modifiers=2)
    assert await tab.run(DOWN) == "", "a shortcut of the browser is none of ours"
    await key(tab, "up", "a", modifiers=2)


async def text_keeps_its_keys(tab):
    """A key that is down when a text field is entered goes up; those typed there are text. A list
    keeps its arrows, which choose other steps here.
    """
    await key(tab, "down", "d")
    await tab.until(f"{MOVES} === 'd'")
    await tab.run("document.getElementById('prompt').value = ''")
    await tab.run("document.getElementById('prompt').focus()")
    await tab.until(f"{MOVES} === ''")
    await key(tab, "up", "d")
    await key(tab, "down", "a")
    assert await tab.run("document.getElementById('prompt').value") == "a"
    assert await tab.run(DOWN) == ""
    await key(tab, "up", "a")
    await tab.run("document.getElementById('steps').focus()")
    await key(tab, "down", "ArrowUp")
    assert await tab.run(DOWN) == ""
    await key(tab, "up", "ArrowUp")
    await tab.run("document.activeElement.blur()")


async def focus_lost(tab):
    await key(tab, "down", "s")
    await tab.until(f"{MOVES} === 's'")
    await tab.run("dispatchEvent(new Event('blur'))")
    assert await tab.run(DOWN) == ""
    await tab.until(f"{MOVES} === ''")
    await key(tab, "up", "s")


def test_a_person_chooses_a_picture_to_begin_with(tmp_path):
    """The first one is chosen at first, by its caption; keys walk while it has the focus."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 255, (2, 32, 32, 1), np.uint8)
    captions = (CAPTIONS[1], CAPTIONS[0])

    async def choose():
        students = [walker(fps=30, pictures=tuple(map(Picture, captions, frames)))]
        async with watched(tmp_path, students) as tab:
            images = "[...document.querySelectorAll('#pictures img')]"
            await tab.until(f"{images}.every((image) => image.naturalWidth === 32)")
            assert await tab.run(f"{images}.map((image) => image.alt).join()") == ",".join(captions)
            assert await tab.run("document.getElementById('prompt').value") == CAPTIONS[1]
            for number in (0, 1):
                await tab.run(f"{images}[{number}].click()")
                await tab.until(f"{GREYS} === '{said(frames[number])}'")
            await tab.run("document.querySelector('#pictures span').click()")
            await tab.until(f"{GREYS} === '{said(np.zeros(1024, np.uint8))}'")
            await tab.run("document.getElementById('record').checked = true")
            await tab.run(f"{images}[1].click()")
            assert await tab.run("document.getElementById('prompt').value") == CAPTIONS[0]
            await clicked(tab, "start")
            await tab.run("document.querySelector('[name=picture]:checked').focus()")
            await tab.until(f"{FRAME} >= 2")
            await key(tab, "down", "ArrowLeft")
            await tab.until(f"{MOVES} === 'j'")
            await key(tab, "up", "ArrowLeft")
            assert await tab.run("document.querySelector('[name=picture]:checked').value") == "1"
            await tab.run("document.querySelector('#pictures span').click()")
            await clicked(tab, "start")
            await tab.until(f"{FRAME} >= 2")
            await clicked(tab, "stop")
            await tab.until(f"{STATE} === 'stopped'")
            assert tab.problems == []

    asyncio.run(choose())
    first, second = map(read_recording, sorted((tmp_path / "sessions").glob("*.jsonl")))
    assert np.array_equal(first.picture, frames[1]) and second.picture is None


def test_without_cameras_no_key_is_captured(tmp_path):
    async def watch():
        async with watched(tmp_path, [student(fps=30)]) as tab:
            assert await tab.run("document.getElementById('keys').offsetHeight") == 0
            await clicked(tab, "start")
            await tab.until(f"{FRAME} >= 2")
            await tab.run(NOTE)
            await key(tab, "down", "ArrowLeft")
            await tab.until("window.kept === false")
            await key(tab, "up", "ArrowLeft")
            seen = await tab.run(FRAME)
            await tab.until(f"{FRAME} >= {seen + 4}")
            assert await tab.run("document.getElementById('message').textContent") == ""
            assert "key to picture" not in await tab.run(METERS)
            assert tab.problems == []

    asyncio.run(watch())
