"""Keys on the live page, without a browser: both students get them, the recording holds them."""

import asyncio
from dataclasses import replace

import pytest
from live_pages import START, served
from tiny_student import CAMERA, student, walker

from experiments.generation.events import NewKeys, NewSteps
from experiments.live import engine
from experiments.live.recording import read_recording
from experiments.live.show import _require_alike, about, key_hints


def test_keys_walk_in_both_lanes_and_replay_to_the_same_bytes(tmp_path):
    async def live():
        students = [walker(), walker(window=4)]
        async with served(tmp_path, students) as (_, page, client):
            told = await (await client.get("/about")).json()
            one = await page()
            await one.tell(**START, lanes=2)
            await one.hear(lambda page: len(page.frames) >= 4)
            await one.tell(type="keys", keys=["w", "left"])
            await one.hear(
                lambda page: (
                    len(page.frames) > 200 or sum("j" in keys for keys in page.keys.values()) >= 6
                )
            )
            await one.tell(type="keys", keys=[])
            last = len(one.frames)
            await one.hear(lambda page: len(page.frames) >= last + 8)
            await one.tell(type="stop")
            await one.hear(lambda page: page.last("ended"))
            again = await page()
            await again.tell(type="replay", recording=one.last("ended")["recording"])
            await again.hear(lambda page: page.last("ended"))
            return told, one, again

    told, one, again = asyncio.run(live())
    assert [each["key"] for each in told["keys"]] == list(CAMERA.keys)
    assert told["keys"][4] == {"key": "j", "bit": 16, "does": "turn left",
                               "names": ["j", "arrowleft"]}  # fmt: skip
    (file,) = tmp_path.glob("*.jsonl")
    recording = read_recording(file)
    (down, pressed), (up, released) = sorted(recording.events.items())
    assert (pressed, released) == ([NewKeys(("j", "w"))], [NewKeys(())])
    expected = {"step": 0.3, "turn": 15.0, "intrinsics": [0.5] * 4}
    assert [each["camera"] for each in recording.students] == [expected] * 2
    for lane, frame, block, _ in one.frames:
        assert one.keys[lane, frame] == ({"j", "w"} if down <= block < up else set())
    assert again.last("ended")["text"] == f"equal: all {recording.frames} frames"
    assert sorted(again.frames)[:8] == sorted(one.frames)[:8]
    assert all(again.keys[where] == keys for where, keys in one.keys.items())


def test_a_student_without_cameras_has_no_hints_and_refuses_keys(tmp_path):
    async def live():
        async with served(tmp_path) as (_, page, client):
            assert (await (await client.get("/about")).json())["keys"] == []
            one = await page()
            await one.tell(**START)
            await one.tell(type="keys", keys=["w"])
            await one.hear(lambda page: page.last("error") and len(page.frames) > 3)
            return one.last("error")["text"]

    assert "tiny was made without cameras, so that no key moves it" in asyncio.run(live())


def test_students_side_by_side_have_one_camera():
    other = walker(camera=replace(CAMERA, intrinsics=(0.6, 0.6, 0.5, 0.5)))
    for pair in ([walker(), student()], [walker(), other]):
        with pytest.raises(ValueError, match="the students differ in camera"):
            _require_alike(pair)
    _require_alike([walker(), walker(steps=1)])
    assert about([walker(), walker()])["keys"] == key_hints(walker())


def test_the_last_keys_are_heard_however_many_wait(tmp_path):
    """Else a key whose release is refused would stay down."""
    made = engine.Engine([walker()], 1, tmp_path)
    viewer = made.join(lambda message: None)
    for number in range(engine.WAITING + 8):
        made.tell(viewer, NewKeys(("w",) if number % 2 else ("a",)))
    made.tell(viewer, NewKeys(()))
    assert len(viewer.commands) == engine.WAITING and viewer.commands[-1] == NewKeys(())
    with pytest.raises(ValueError, match="too many commands"):
        made.tell(viewer, NewSteps(1))
