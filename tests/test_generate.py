"""``generate``: a video from a prompt, of whatever a student can be named by."""

import json
import shutil

import av
import numpy as np
import pytest
from PIL import Image
from tiny_student import CAPTIONS, walker, write_run

from experiments.__main__ import main
from experiments.live import students


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("student"))


@pytest.fixture
def generate(tmp_path, capsys, caplog):
    """The command; returns (status, what it said)."""

    def call(student, *words):
        caplog.clear()
        status = main(["generate", str(student), "--out", str(tmp_path / "out"), *map(str, words)])
        return status, capsys.readouterr().err + caplog.text

    caplog.set_level("INFO")
    return call


def frames_of(file):
    with av.open(str(file)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_a_run_needs_no_setting(run, generate, tmp_path):
    status, said = generate(run, "--prompt", CAPTIONS[0])
    (file,) = (tmp_path / "out").iterdir()
    assert status == 0 and file.name == "000-a-one-moving-left-seed0.mp4"
    assert len(frames_of(file)) == 6, "as many as a training clip"
    for words in ("6 frames (0.75 s at 8 frames/s), 2 steps", "first frame after", "frames/s",
                  "peak memory", "MiB"):  # fmt: skip
        assert words in said


def test_options_that_a_run_answers_itself_are_said_to_be_without_effect(run, generate):
    status, said = generate(run, "--prompt", CAPTIONS[0], "--blocks", "3", "--scale", "tiny")
    assert status == 0 and "--scale and --blocks is without effect on" in said, said
    assert "without effect" not in generate(run, "--prompt", CAPTIONS[0])[1]


def test_any_length_seed_steps_and_image(run, generate, tmp_path):
    image = tmp_path / "image.png"
    Image.new("RGB", (40, 32), "white").save(image)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*CAPTIONS, ""]))
    words = ("--prompts", prompts, "--frames", 17, "--steps", 1, "--window", 4, "--sinks", 1)
    assert generate(run / "student", *words, "--seed", 3, "--image", image)[0] == 0
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [
        f"{name}-seed3-steps1-frames17-window4-sinks1-image-image.mp4"
        for name in ("000-a-one-moving-left", "001-a-two-moving-right")
    ]
    first, *others = frames_of(files[0])
    assert first.min() > 240 and len(others) == 16
    before = files[0].read_bytes()
    generate(run, *words, "--seed", 3, "--image", image)
    assert files[0].read_bytes() == before
    generate(run, *words, "--seed", 4, "--image", image)
    assert (tmp_path / "out" / files[0].name.replace("3", "4")).read_bytes() != before
    generate(run, *words, "--seed", 3, "--image", image, "--sinks-follow")
    followed = files[0].with_name(files[0].name.replace("sinks1", "sinks1-sinks-follow"))
    assert followed.read_bytes() != files[0].read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give --prompt TEXT, such as --prompt 'a one moving left'"),
        (("--prompt", "a cat"), "unknown words ['cat']; this text encoder knows: a left"),
        (("--prompt", "a one", "--frames", 0), "--frames: 0 must be at least 1"),
        (("--prompt", "a one", "--steps", 0), "--steps: 0 must be at least 1"),
        (("--prompt", "a one", "--seed", -1), "--seed: -1 must be at least 0"),
        (("--prompt", "a one", "--sinks", 6), "--window: 6 latent frames have no room for 6 sinks"),
        (("--prompt", "a one", "--sinks-follow"), "--sinks-follow: there are no sinks; give"),
        (("--prompt", "a one", "--image", "none.png"), "none.png: no such file"),
        (("--prompt", "a", "--prompt", "one", "--out", "x.mp4"), "there are 2 prompts"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(run, generate, tmp_path, words, said):
    status, told = generate(run, *words)
    assert status == 1 and said in told and not (tmp_path / "out").exists()


def test_runs_that_cannot_stream_say_why(run, generate, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    assert "not done; run: python -m experiments fit" in generate(tmp_path / "run")[1]
    both = write_run(tmp_path, **{"class": "Bidirectional", "intervals": 2, "guidance": 1.0}) \
        if not (shutil.rmtree(tmp_path / "run")) else None  # fmt: skip
    assert "a bidirectional network samples whole clips" in generate(both)[1]
    shutil.rmtree(tmp_path / "data")
    assert "which names its encoders, is gone" in generate(both)[1]


SAMPLING = {
    "sampler": "few_steps", "clip_shape": [3, 16, 2, 2], "blocks": [1], "shift": 5.0,
    "few_steps": 1, "first_few_steps": 1, "guidance": 1.0,
}  # fmt: skip


@pytest.fixture
def published(wan_folder, tmp_path, monkeypatch):
    """A checkpoint as it is published, of a scale with small clips."""
    from safetensors.torch import load_file, save_file

    from experiments.checkpoints.wan_keys import to_published

    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(students, "_of_scale", lambda tree, blocks: SAMPLING)
    config = wan_folder / "transformer"
    original = students.import_checkpoint
    monkeypatch.setattr(
        students, "import_checkpoint", lambda file, folder: original(file, folder, config=config)
    )
    (weights,) = (wan_folder / "transformer").glob("*.safetensors")
    save_file(to_published(load_file(weights)), tmp_path / "student.safetensors")
    return tmp_path / "student.safetensors"


def test_a_published_checkpoint_is_imported_once(published, wan_folder, generate, tmp_path):
    words = ("--wan", wan_folder, "--prompt", "a cat walks", "--frames", 9)
    status, said = generate(published, *words)
    assert status == 0 and "does not say how it is sampled: 1 steps" in said
    (imported,) = (tmp_path / "runs" / "imported").iterdir()
    before = imported.stat().st_mtime_ns
    assert generate(published, *words)[0] == 0 and imported.stat().st_mtime_ns == before
    (file,) = (tmp_path / "out").iterdir()
    assert len(frames_of(file)) == 9 and frames_of(file)[0].shape == (16, 16, 3)


def test_a_file_of_the_hub_is_one(published, wan_folder, generate, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *where: asked.append(where) or str(published)
    )
    words = ("--wan", wan_folder, "--prompt", "a cat", "--frames", 1)
    assert generate("some/students/deep/student.safetensors", *words)[0] == 0
    assert asked == [("some/students", "deep/student.safetensors")]


def test_a_folder_says_how_it_is_sampled_and_a_long_prompt_warns(wan_folder, generate, tmp_path):
    shutil.copytree(wan_folder, tmp_path / "wan")
    (tmp_path / "wan" / "transformer" / "causal.json").write_text(
        json.dumps({"sampling": SAMPLING})
    )
    status, said = generate(tmp_path / "wan", "--prompt", "a cat " * 300, "--frames", 1)
    assert status == 0 and "is cut after 512" in said


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"class": "SFDMD", "levels": [[1.0, 0.5]], "noisy_from": None}, "trained with levels"),
        ({"class": "SFDMD", "levels": [], "noisy_from": 1}, "trained with noisy_from"),
    ],
)
def test_a_schedule_that_a_stream_has_not_is_refused(generate, tmp_path, stage, said):
    status, told = generate(write_run(tmp_path, **stage), "--prompt", CAPTIONS[0])
    assert status == 1 and said in told and "sample_schedule" in told


def test_a_network_with_cameras_needs_to_know_how_far_a_key_goes(generate, run, tmp_path):
    copy = shutil.copytree(run.parent, tmp_path / "copy") / "run"
    config = copy / "student" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cameras": True}))
    status, told = generate(copy, "--prompt", CAPTIONS[0])
    assert status == 1 and "give the run that trained it" in told


@pytest.fixture(scope="module")
def walking(tmp_path_factory):
    """The run of a student with cameras."""
    return write_run(tmp_path_factory.mktemp("walking"), walker())


def test_a_walk_by_keys(generate, walking, tmp_path):
    """As long as its keys, from where it begins; what follows them stands still."""
    made = {}
    for name, *words in (
        ("still", "--frames", 9),
        ("keys", "--keys", "w*4, wl*2, none, left"),
        ("longer", "--keys", "w*4, wl*2, none, left, none*2"),
        ("cut", "--keys", "w*4, wl*2, none, left", "--frames", 11),
    ):
        file = tmp_path / f"{name}.mp4"
        status, said = generate(walking, "--prompt", CAPTIONS[0], *words, "--out", file)
        assert status == 0, said
        made[name] = frames_of(file)
    assert [len(made[name]) for name in ("still", "keys", "longer", "cut")] == [9, 9, 11, 11]
    assert not same(made["still"], made["keys"]) and same(made["cut"], made["longer"])


def same(one, other):
    return all(map(np.array_equal, one, other))


def test_a_walk_in_chunks_moves_from_the_first_block_on(generate, tmp_path):
    """But not if an image is given, which is a block of its own."""
    chunks = write_run(tmp_path, walker(), blocks=2)
    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32), "white").save(image)
    for words, count in (((), 6), (("--image", image), 7)):
        file = tmp_path / f"{count}.mp4"
        words = ("--prompt", CAPTIONS[0], "--keys", "w*2,l", *words, "--out", file)
        assert generate(chunks, *words)[0] == 0 and len(frames_of(file)) == count


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("x", "--keys: 'x': there is no key 'x'; there are w, s, a, d"),
        ("w*0", "--keys: 'w*0': '0' is no number of frames"),
        (" , ", "--keys: there are none; write them as"),
        ("i*3", "run was trained on walks without i; it knows w, s, a, d, j, l"),
    ],
)
def test_keys_that_do_not_fit_are_refused(generate, walking, tmp_path, keys, said):
    status, told = generate(walking, "--prompt", CAPTIONS[0], "--keys", keys)
    assert status == 1 and said in told and not (tmp_path / "out").exists()


def test_keys_of_a_student_without_cameras_are_refused(generate, run):
    status, told = generate(run, "--prompt", CAPTIONS[0], "--keys", "w*4")
    assert status == 1 and "run was made without cameras, so that no key moves it" in told
    assert "give no keys, or a student of clips with cameras" in told
