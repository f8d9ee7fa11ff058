"""``live --measure``: what viewers of a page would get, without a page."""

import asyncio
import json

import pytest
from live_pages import served
from tiny_student import CAPTIONS, walker, write_run

from experiments.__main__ import main
from experiments.live.measure import Client


@pytest.mark.parametrize("tiny", [None, walker()], ids=["plain", "with cameras"])
def test_what_viewers_get(tmp_path, caplog, tiny):
    caplog.set_level("INFO")
    run, file = write_run(tmp_path, tiny), tmp_path / "live.json"
    words = ["live", str(run), "--recordings", str(tmp_path / "sessions")]
    assert main([*words, "--measure", "4", "--out", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["first_frame_s"] > 0 and found["frames_per_s"] > 0
    assert found["drawn_per_s"] <= found["fps"] + 0.5, "no faster than the clip"
    crowd = found["crowd"]
    assert 0 < crowd["least_frames_per_s"] <= crowd["frames_per_s"] / crowd["viewers"]
    assert (found["key_to_picture_s"] is not None) == (tiny is not None)
    assert not (tmp_path / "sessions").exists(), "nothing is recorded"
    for words in ("one viewer: first frame after", "of 8 frames/s", "20 viewers"):
        assert words in caplog.text
    if tiny:
        assert found["key_to_picture_s"]["median"] > 0
        assert "key to picture" in caplog.text


def test_what_the_server_refuses_ends_the_measurement(tmp_path):
    async def live():
        async with served(tmp_path) as (_, page, _):
            await Client((await page()).socket).watch(CAPTIONS[0], 3, 1)

    with pytest.raises(ValueError, match=r"start.picture: 3, but there are 0"):
        asyncio.run(live())


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--measure", "0"), "--measure: 0 s; give 1 to 3600"),
     (("--measure", "nan"), "--measure: nan s; give 1 to 3600"),
     (("--out", "x.json"), "--out: is of --measure")],
)  # fmt: skip
def test_wrong_measurements_are_refused_at_once(words, said, capsys):
    assert main(["live", "nowhere", *words]) in (1, 2)
    assert said in capsys.readouterr().err
