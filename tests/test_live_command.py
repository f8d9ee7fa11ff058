"""``live`` as a command: it serves until it is stopped, and replays a recording without a page."""

import asyncio
import re
import signal
import subprocess
import sys
from argparse import Namespace

import pytest
from aiohttp import ClientSession
from live_pages import START, Page, served
from tiny_student import CAPTIONS, walker, write_run

from experiments.__main__ import main
from experiments.generation.events import NewKeys
from experiments.generation.session import Session
from experiments.live.recording import Recorder, digest_of, read_recording
from experiments.live.students import open_student
from experiments.live.viewer import header

CHOSEN = Namespace(
    steps=None, window=None, sinks=0, sinks_follow=False, scale="tiny", wan=None, blocks=None
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run, and a recording of it."""
    folder = tmp_path_factory.mktemp("recorded")
    run = write_run(folder)

    async def live():
        async with served(folder / "sessions", [open_student(str(run), CHOSEN)]) as (_, page, _):
            one = await page()
            await one.tell(**START)
            await one.hear(lambda page: len(page.frames) >= 4)
            await one.tell(type="prompt", text=CAPTIONS[1], how="rewrite")
            await one.hear(lambda page: len(page.frames) >= 8)

    asyncio.run(live())
    (file,) = (folder / "sessions").glob("*.jsonl")
    return run, file


def test_a_recording_replays_without_a_page(recorded, tmp_path, caplog, capsys):
    run, file = recorded
    caplog.set_level("INFO")
    words = ["live", str(run), "--replay", str(file), "--mp4", str(tmp_path / "video.mp4")]
    assert main(words) == 0 and "equal: all" in caplog.text
    assert (tmp_path / "video.mp4").stat().st_size > 500
    lines = file.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"frame": 2' in line)
    lines[at] = lines[at][:-18] + "0" * 16 + '"}'
    (tmp_path / "changed.jsonl").write_text("\n".join(lines))
    assert main([*words[:2], "--replay", str(tmp_path / "changed.jsonl")]) == 1
    assert "different from frame 2 on (1 of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "no recording"), ("{}\n", "line 1"), ("[1]\n", "line 1"),
     ("x\ny\n", "line 1 is not JSON"),
     (None, "no such file")],
)  # fmt: skip
def test_what_is_no_recording_is_refused(recorded, tmp_path, capsys, content, said):
    file = tmp_path / "recording.jsonl"
    if content is not None:
        file.write_text(content)
    assert main(["live", str(recorded[0]), "--replay", str(file)]) == 1
    told = capsys.readouterr().err
    assert said in told and "recording.jsonl" in told and "bug" not in told


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(recorded, tmp_path, number):
    words = [sys.executable, "-m", "experiments", "live", str(recorded[0]), "--recordings"]
    process = subprocess.Popen([*words, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    home = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]

    async def watch():
        async with ClientSession(home) as client:
            assert (await (await client.get("/about")).json())["fps"] == 8
            one = Page(await client.ws_connect("/live", headers={"Origin": home}))
            await one.tell(**START)
            await one.hear(lambda page: len(page.frames) == 3)
            process.send_signal(number)
            await one.hear(lambda page: page.last("ended"))
            return one.last("ended")

    ended = asyncio.run(watch())
    assert ended["reason"] == "the server was stopped" and process.wait(60) == 0
    assert read_recording(tmp_path / f"{ended['recording']}.jsonl").frames >= 3


def test_another_context_than_the_recorded_is_refused(recorded, capsys):
    run, file = recorded
    words = ["live", str(run), "--replay", str(file)]
    for more, said in (
        (["--window", "4"], "--window: recorded with 6, this is 4; give what was recorded"),
        (["--sinks", "1"], "--sinks: recorded with 0, this is 1"),
    ):
        assert main([*words, *more]) == 1
        assert said in capsys.readouterr().err


def test_a_recorded_walk_replays_with_its_keys_alone(tmp_path, caplog, capsys):
    run, file = write_run(tmp_path, walker()), tmp_path / "walk.jsonl"
    caplog.set_level("INFO")
    session = Session(open_student(str(run), CHOSEN), CAPTIONS[0], 0)
    recorder = Recorder(file, header([session]))
    for keys in ((), ("w",), ("w", "l"), (), ("a",)):
        session.request(NewKeys(keys))
        block = session.next()
        recorder.add(0, block, [digest_of(frame) for frame in block.frames])
    recorder.close()
    assert main(["live", str(run), "--replay", str(file)]) == 0 and "equal: all 5" in caplog.text
    file.write_text(file.read_text().replace('"keys": ["a"]', '"keys": ["d"]'))
    assert main(["live", str(run), "--replay", str(file)]) == 1
    assert "different from frame 4 on" in capsys.readouterr().err
    (tmp_path / "plain").mkdir()
    plain = write_run(tmp_path / "plain")
    assert main(["live", str(plain), "--replay", str(file)]) == 1
    assert "run was made without cameras" in capsys.readouterr().err
