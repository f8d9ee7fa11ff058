"""Pictures to begin with: of files, and of the clips that a student with cameras learnt from."""

import asyncio
import io
import json
from argparse import Namespace
from base64 import b64encode

import numpy as np
import pytest
import torch
from live_pages import START, served
from PIL import Image
from tiny_student import CAMERA, CAPTIONS, student, walker, write_run

from datamodules.shards.reader import ShardWriter, open_shards
from experiments.__main__ import main
from experiments.generation.session import Session
from experiments.generation.student import Picture
from experiments.live.recording import as_png, digest_of, read_recording
from experiments.live.students import open_student
from experiments.runs.yaml_reader import dump_yaml, read_yaml

CHOSEN = Namespace(
    steps=None, window=None, sinks=0, sinks_follow=False, scale="tiny", wan=None, blocks=None
)
FRAMES = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 1), np.uint8)
PICTURES = tuple(map(Picture, CAPTIONS, FRAMES))


def through(tiny, frame):
    """A frame as the autoencoder gives it back."""
    video = torch.from_numpy(frame)[None, None]
    return tiny.autoencoder.decode(tiny.autoencoder.encode(video))[0, 0].numpy()


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The run of a student with cameras, that was watched by two clips; their first latents."""
    folder = tmp_path_factory.mktemp("watched")
    run, data = write_run(folder, walker()), open_shards(folder / "data" / "shards")
    generator = np.random.default_rng(1)
    clips = generator.normal(size=(2, 6, 4, 4, 4)).astype(np.float32)
    about = {name: data.manifest[name] for name in ("fps", "channels", "normalisation",
             "autoencoder", "text_encoder", "negative_prompt", "cameras")}  # fmt: skip
    with ShardWriter(folder / "panel" / "shards", "clips", about=about,
                     negative=walker().negative.numpy()) as writer:  # fmt: skip
        for number, latents in enumerate(clips):
            arrays = data.read(number, ["text", "poses", "intrinsics"])
            kept = {name: arrays[name] for name in ("text", "poses", "intrinsics")}
            info = {"caption": CAPTIONS[1 - number]} | (
                {"start": [0.9, 0.0, 90.0]} if number else {}
            )
            writer.write(f"heldout-{number}", {"latents": latents} | kept, info)
    recipe = read_yaml(run / "recipe.yaml")
    recipe["needs"]["panel"] = str(folder / "panel")
    (run / "recipe.yaml").write_text(dump_yaml(recipe))
    return run, clips[:, 0]


def test_a_session_begins_with_the_picture_that_was_chosen(tmp_path):
    tiny = walker(pictures=PICTURES)
    expected = [digest_of(through(tiny, frame)) for frame in FRAMES]

    async def live():
        async with served(tmp_path, [tiny]) as (_, page, client):
            one = await page()
            for number in (1, None, 0):
                one.said.clear()
                await one.tell(**START, picture=number)
                await one.hear(lambda page: page.last("started"))
                one.frames.clear()  # those of the session before
                await one.hear(lambda page: len(page.frames) >= 4)
                digest = f"{one.frames[0][3]:016x}"
                assert digest == expected[number] if number is not None else digest not in expected
            await one.tell(type="stop")
            await one.hear(lambda page: page.last("ended"))
            await one.tell(type="replay", recording=one.last("ended")["recording"])
            await one.hear(lambda page: page.last("ended")["reason"] == "replayed")
            assert one.last("ended")["text"].startswith("equal: all")
            await one.tell(**START, picture=2)
            await one.hear(lambda page: page.last("error"))
            assert one.last("error")["text"] == "start.picture: 2, but there are 2"
            about = await (await client.get("/about")).json()
            assert about["pictures"] == list(CAPTIONS)
            png = await (await client.get("/pictures/1.png")).read()
            assert np.array_equal(np.array(Image.open(io.BytesIO(png))), FRAMES[1, ..., 0])
            for wrong in ("2", "-1", "\u0663", "1.5", ""):
                assert (await client.get(f"/pictures/{wrong}.png")).status == 404

    asyncio.run(live())
    recordings = [read_recording(file) for file in sorted(tmp_path.glob("*.jsonl"))]
    given = [each.picture for each in recordings]
    assert np.array_equal(given[0], FRAMES[1]) and given[1] is None


def test_a_recording_knows_its_picture_without_the_clips(watched, tmp_path, caplog, monkeypatch):
    run, _ = watched
    monkeypatch.chdir(tmp_path)

    async def live():
        async with served(tmp_path, [open_student(str(run), CHOSEN)]) as (_, page, _):
            one = await page()
            await one.tell(**START, picture=1)
            await one.hear(lambda page: len(page.frames) >= 6)

    asyncio.run(live())
    (file,) = tmp_path.glob("*.jsonl")
    caplog.set_level("INFO")
    assert main(["live", str(run), "--replay", str(file)]) == 0 and "equal: all" in caplog.text
    assert read_recording(file).start == (0.9, 0.0, 90.0), "walls would stop it there, too"
    header, *others = file.read_text().splitlines()
    other = json.loads(header) | {"picture": None}
    (tmp_path / "other.jsonl").write_text("\n".join([json.dumps(other), *others]))
    assert main(["live", str(run), "--replay", str(tmp_path / "other.jsonl")]) == 1


@pytest.mark.parametrize(
    "content",
    ["no base64!", b64encode(b"no image").decode(), b64encode(as_png(FRAMES[0])[:60]).decode(), 3],
)
def test_a_picture_that_is_none_is_refused(tmp_path, content):
    header = {"format": 1, "students": [{"name": "tiny"}], "prompt": "a one", "seed": 0, "steps": 2,
              "machine": {}, "picture": content}  # fmt: skip
    file = tmp_path / "broken.jsonl"
    file.write_text(json.dumps(header) + "\n")
    with pytest.raises(ValueError, match="line 1 is none of a recording"):
        read_recording(file)


def test_another_format_than_png_is_not_opened(tmp_path):
    with io.BytesIO() as jpeg:
        Image.fromarray(FRAMES[0, ..., 0]).save(jpeg, "JPEG")
        content = b64encode(jpeg.getvalue()).decode()
    test_a_picture_that_is_none_is_refused(tmp_path, content)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"a first frame \[16, 32, 1\]; those of tiny are \[32, 3"):
        Session(student(), CAPTIONS[0], 0, image=FRAMES[0, :16])


def test_walks_begin_where_a_clip_began(watched):
    run, latents = watched
    opened = open_student(str(run), CHOSEN)
    assert [each.caption for each in opened.pictures] == [CAPTIONS[1], CAPTIONS[0]]
    expected = opened.autoencoder.decode(torch.from_numpy(latents)[:, None])[:, 0].numpy()
    assert np.array_equal([each.frame for each in opened.pictures], expected)
    assert opened.picture_for(CAPTIONS[0]) is opened.pictures[1]
    assert [each.start for each in opened.pictures] == [None, (0.9, 0.0, 90.0)]
    assert opened.picture_for("a three") is None and opened.camera == CAMERA


def test_a_student_without_cameras_begins_with_nothing(tmp_path):
    assert open_student(str(write_run(tmp_path)), CHOSEN).pictures == ()


def test_a_generated_walk_begins_with_the_clip_of_its_caption(watched, tmp_path, caplog):
    run, _ = watched
    opened = open_student(str(run), CHOSEN)
    caplog.set_level("INFO")
    image = tmp_path / "image.png"
    image.write_bytes(as_png(opened.pictures[0].frame))
    files = {}
    for name, prompt, words in (
        ("its own", CAPTIONS[1], []),
        ("as a file", CAPTIONS[1], ["--image", str(image)]),
        ("none", "a three", []),
    ):
        caplog.clear()
        files[name] = tmp_path / f"{name}.mp4"
        words = ["generate", str(run), "--prompt", prompt, "--out", str(files[name]), *words]
        assert main(words) == 0
        assert ("begins with the first frame of a clip" in caplog.text) == (name == "its own")
    assert files["its own"].read_bytes() == files["as a file"].read_bytes()
