"""The server with its engine: frames, credit, recordings, viewers that vanish or do not read."""

import asyncio
import threading
import time

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError
from live_pages import START, served
from tiny_student import CAPTIONS, student

from experiments.generation.student import Student
from experiments.live import engine, server
from experiments.live.recording import read_recording
from experiments.live.server import PAGE
from experiments.live.viewer import LEAD
from experiments.runs.provenance import revision


def test_a_session_is_recorded_and_replays_to_the_same_bytes(tmp_path):
    """With a change of prompt and steps; the events act on a later block, and are in the file."""

    async def live():
        async with served(tmp_path) as (_, page, client):
            one = await page()
            await one.tell(**START)
            await one.hear(lambda page: len(page.frames) >= 5)
            await one.tell(type="prompt", text=CAPTIONS[1], how="cut")
            await one.tell(type="steps", steps=1)
            await one.hear(lambda page: len(page.frames) >= 12)
            await one.tell(type="stop")
            await one.hear(lambda page: page.last("ended"))
            name = one.last("ended")["recording"]
            assert await (await client.get("/recordings")).json() == [name]
            assert (await client.get(f"/recordings/{name}.jsonl")).status == 200
            for path in ("/recordings/nothing", "/recordings/..%2Frun", "/static/..%2Fserver.py"):
                assert (await client.get(path)).status == 404
            again, changed = await page(), await page()
            await again.tell(type="replay", recording=name)
            await again.hear(lambda page: page.last("ended"))
            digest = f"{one.frames[3][3]:016x}"
            lines = (tmp_path / f"{name}.jsonl").read_text()
            assert lines.count(digest) == 1
            (tmp_path / "changed.jsonl").write_text(lines.replace(digest, "0" * 16))
            await changed.tell(type="replay", recording="changed")
            await changed.hear(lambda page: page.last("ended"))
            other = await page()
            (tmp_path / "other.jsonl").write_text(lines.replace('"sinks": 0', '"sinks": 1'))
            await other.tell(type="replay", recording="other")
            await other.hear(lambda page: page.last("error"))
            assert "--sinks: recorded with 1, this is 0" in other.last("error")["text"]
            return one, again, changed, name

    one, again, changed, name = asyncio.run(live())
    assert changed.last("ended")["text"] == "different from frame 3 of lane 0 on"
    recording = read_recording(tmp_path / f"{name}.jsonl")
    assert [frame[1] for frame in one.frames] == list(range(len(one.frames)))
    assert again.last("ended")["text"] == f"equal: all {recording.frames} frames"
    assert [f[3] for f in again.frames[: len(one.frames)]] == [f[3] for f in one.frames]
    assert sum(map(len, recording.events.values())) == 2 and min(recording.events) >= 5
    stats = next(each for each in one.said if each["type"] == "stats")
    assert stats["lanes"][0]["prompt"] == CAPTIONS[0] and "MiB" in stats["memory"]
    assert recording.revision == revision()


def test_a_prompt_that_the_encoder_cuts_is_said(tmp_path, monkeypatch):
    """When the session starts and when the prompt changes; a prompt that fits is not."""
    cut = {START["prompt"], CAPTIONS[1]}
    monkeypatch.setattr(
        Student, "beyond", lambda self, prompts: f"{prompts[0]} is cut" if prompts[0] in cut else ""
    )

    async def live():
        async with served(tmp_path) as (_, page, _):
            one = await page()
            await one.tell(**START)
            await one.hear(lambda page: len(page.frames) >= 3)
            await one.tell(type="prompt", text=CAPTIONS[1], how="cut")
            await one.hear(lambda page: len(page.frames) >= 12)
            return [each["text"] for each in one.said if each["type"] == "warning"]

    assert asyncio.run(live()) == [f"{START['prompt']} is cut", f"{CAPTIONS[1]} is cut"]
    cut.clear()
    assert asyncio.run(live()) == []


def test_two_servers_record_into_one_folder(tmp_path, monkeypatch):
    """In the same second, each its first session."""
    monkeypatch.setattr(engine, "strftime", lambda pattern: "20260101-000000")

    async def live():
        async with served(tmp_path) as (_, page, _), served(tmp_path) as (_, other, _):
            for each in (await page(), await other()):
                await each.tell(**START)
                await each.hear(lambda page: len(page.frames) >= 3)

    asyncio.run(live())
    assert {file.stem[-2:] for file in tmp_path.glob("*.jsonl")} == {"-1", "-2"}


def test_nothing_is_made_without_credit(tmp_path, monkeypatch):
    """A client that does not read answers no ping; here that must not end it."""
    monkeypatch.setattr(server, "HEARTBEAT_S", 600.0)

    async def live():
        async with served(tmp_path) as (engine, page, _):
            slow = await page()
            await slow.tell(**START)
            await slow.hear(lambda page: len(page.frames) == LEAD, shows=False)
            fast = await page()
            await fast.tell(**START)
            await fast.hear(lambda page: len(page.frames) == 20)
            with engine._changed:
                made = sorted(each.sessions[0]._index for each in engine._viewers)
            assert made[0] == LEAD and made[1] >= 20
            await slow.tell(type="shown", frame=0)
            await slow.hear(lambda page: len(page.frames) == LEAD + 1, shows=False)

    asyncio.run(live())


def test_who_vanishes_is_forgotten_and_the_recording_is_whole(tmp_path):
    async def live():
        async with served(tmp_path) as (engine, page, client):
            gone = await page()
            await gone.tell(**START)
            await gone.hear(lambda page: len(page.frames) == 4)
            gone.socket._response.connection.transport.abort()
            while engine.viewers:
                await asyncio.sleep(0.01)
            assert (await (await client.get("/health")).json()) == {"viewers": 0}

    asyncio.run(asyncio.wait_for(live(), 60))
    (file,) = tmp_path.glob("*.jsonl")
    assert read_recording(file).frames >= 4
    file.write_text(file.read_text()[:-9])  # killed in the middle of a line
    assert read_recording(file).frames >= 3


def test_nonsense_is_answered_and_the_others_go_on(tmp_path):
    async def live():
        async with served(tmp_path) as (_, page, _):
            good, bad = await page(), await page()
            await good.tell(**START)
            for message in ('{"type": "start", "prompt": "a cat"}', "[", '{"type": "replay"}',
                            '{"type": "steps", "steps": 2}',
                            '{"type": "replay", "recording": ".."}',
                            '{"type": "start", "prompt": "a", "lanes": 2}'):  # fmt: skip
                await bad.socket.send_str(message)
            await bad.socket.send_bytes(b"\0" * 64)
            await bad.hear(lambda page: len(page.said) == 7)
            assert {each["type"] for each in bad.said} == {"error"}
            assert "unknown words ['cat']" in "".join(each["text"] for each in bad.said)
            await bad.tell(**START | {"record": False})
            await bad.hear(lambda page: len(page.frames) == 3)
            await bad.socket.send_str("x" * 10_000)
            closed = await bad.socket.receive()
            while closed.type is WSMsgType.BINARY:
                closed = await bad.socket.receive()
            assert closed.type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
            await good.hear(lambda page: len(page.frames) == 9)

    asyncio.run(live())


@pytest.mark.parametrize("origin", [None, "http://evil.example"])
def test_a_foreign_page_gets_no_connection(tmp_path, origin):
    async def live():
        async with served(tmp_path) as (engine, page, _):
            with pytest.raises(WSServerHandshakeError) as refused:
                await page(origin)
            assert refused.value.status == 403 and not engine.viewers

    asyncio.run(live())


def test_a_session_that_fails_ends_alone(tmp_path, monkeypatch):
    async def live():
        async with served(tmp_path) as (engine, page, _):
            good, bad = await page(), await page()
            await bad.tell(**START)
            await bad.hear(lambda page: len(page.frames) == 1)
            with engine._changed:
                (viewer,) = [each for each in engine._viewers if each.watching]
            monkeypatch.setattr(viewer.sessions[0], "next", lambda: 1 / 0)
            await bad.hear(lambda page: page.last("ended"))
            assert bad.last("ended")["reason"] == "failed" and bad.last("error")["text"]
            await good.tell(**START)
            await good.hear(lambda page: len(page.frames) == 3)

    asyncio.run(live())


def test_two_students_are_seen_side_by_side(tmp_path):
    """In as many steps, which the recording has once, though they were trained for 2 and 1."""

    async def live():
        async with served(tmp_path, [student(), student(steps=1)]) as (_, page, _):
            one, again = await page(), await page()
            await one.tell(**START, lanes=2)
            await one.hear(lambda page: len(page.frames) >= 8)
            await one.tell(type="stop")
            await one.hear(lambda page: page.last("ended"))
            await again.tell(type="replay", recording=one.last("ended")["recording"])
            await again.hear(lambda page: page.last("ended"))
            return one.frames, again.last("ended")

    frames, ended = asyncio.run(live())
    assert {(lane, frame) for lane, frame, *_ in frames[:8]} == {
        (lane, frame) for lane in (0, 1) for frame in range(4)
    }
    assert ended["text"].startswith("equal")


def test_more_viewers_than_sessions_wait_for_their_turn(tmp_path):
    async def live():
        async with served(tmp_path, sessions=1) as (_, page, _):
            first, second = await page(), await page()
            await first.tell(**START)
            await first.hear(lambda page: len(page.frames) == 2)
            await second.tell(**START)
            await second.hear(lambda page: page.said)
            assert second.said == [{"type": "queued", "position": 1}]
            await first.tell(type="stop")
            await second.hear(lambda page: len(page.frames) == 2)

    asyncio.run(live())


def test_twenty_viewers_get_equal_shares(tmp_path):
    async def live():
        async with served(tmp_path) as (_, page, _):
            pages = [await page() for _ in range(20)]
            for each in pages:
                await each.tell(**START | {"record": False})
            enough = lambda page: len(page.frames) >= 6  # noqa: E731
            await asyncio.gather(*(each.hear(enough) for each in pages))
            return [len(each.frames) for each in pages]

    assert max(asyncio.run(live())) <= 8


def test_the_server_stops_with_its_sessions(tmp_path):
    async def live():
        async with served(tmp_path) as (engine, page, _):
            one = await page()
            await one.tell(**START)
            await one.hear(lambda page: len(page.frames) == 2)
            await asyncio.to_thread(engine.close)
            await one.hear(lambda page: page.last("ended"))
            return one

    assert asyncio.run(live()).last("ended")["reason"] == "the server was stopped"
    assert not [each for each in threading.enumerate() if each.name == "engine"]
    (file,) = tmp_path.glob("*.jsonl")
    assert read_recording(file).frames >= 2


@pytest.mark.parametrize("file", sorted(PAGE.iterdir()), ids=lambda file: file.name)
def test_the_page_asks_for_nothing_from_elsewhere(file):
    text = file.read_text()
    assert "://" not in text.replace("${scheme}://${location.host}", "")
    assert "innerHTML" not in text and "eval(" not in text
    if file.suffix == ".html":
        assert "<style" not in text and " on" not in text.replace(" once", "").replace(" one", "")


@pytest.mark.slow
def test_time_changes_nothing_in_memory(tmp_path):
    import psutil

    async def live():
        async with served(tmp_path) as (_, page, _):
            pages = [await page() for _ in range(2)]
            for each in pages:
                await each.tell(**START | {"record": False})
            held, end = [], time.monotonic() + 20
            while time.monotonic() < end:
                for each in pages:
                    count = len(each.frames) + 20
                    await each.hear(lambda page, count=count: len(page.frames) >= count)
                    await each.tell(type="prompt", text=CAPTIONS[len(held) % 2], how="rewrite")
                    await each.tell(type="steps", steps=1 + len(held) % 3)
                    each.frames.clear()
                    each.said.clear()
                held.append(psutil.Process().memory_info().rss)
            return held

    held = asyncio.run(live())
    assert max(held[len(held) // 2 :]) < 1.05 * max(held[: len(held) // 2])
