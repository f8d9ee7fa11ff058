"""User errors through the command line: the message names the error and its cure, early.

Early: nothing was trained and nothing handed on. Processes that die are in test_resume.py.
"""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from minimal_runs import SETTINGS, copied, finished, rewritten, weights
from safetensors.torch import load_file, save_file

import lightning_modules.networks.wan.transformer  # noqa: F401 - diffusers logs where stderr is at its import
from datamodules.shards.npy_tar import locate_members
from datamodules.shards.reader import open_shards
from experiments.__main__ import main

STAGE1 = "stage1_teacher_forcing"
PAIRS = ["pairs", "causal_pairs"]


@pytest.fixture(autouse=True)
def _signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Finished runs up to the base; the stages are not trained."""
    return copied(tmp_path_factory.mktemp("bad"), "stage1", "stage2", "stage3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Finished runs and causal pairs."""
    runs = copied(tmp_path_factory.mktemp("trained"), "stage3")
    assert main([*PAIRS, *SETTINGS, "--runs", str(runs)]) == 0
    return runs


@pytest.fixture
def refuse(capsys):
    """Call a verb, expect a refusal, return what it said."""

    def call(runs: Path, verb: str, recipe: str, *words: str) -> str:
        before = {path for path in runs.rglob("*") if path.suffix in (".ckpt", ".safetensors")}
        done = {path.parent for path in runs.glob("*/done.json")}
        capsys.readouterr()
        status = main([verb, recipe, *SETTINGS, *words, "--runs", str(runs)])
        said = capsys.readouterr()
        assert status in (1, 2), said.out
        assert {p for p in runs.rglob("*") if p.suffix in (".ckpt", ".safetensors")} == before
        assert {path.parent for path in runs.glob("*/done.json")} == done
        assert said.err.startswith("error: ") and "Traceback" not in said.err
        return said.err

    return call


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stages.stage1.setps=3", "did you mean 'stages.stage1.steps'"),
        ("fit.batsh=3", "did you mean 'fit.batch'"),
        ("stages.stage1.steps=ten", "fit.steps: 'ten' must be a whole number at least 0"),
        (
            "stages.stage1.learning_rate=fast",
            "stage.learning_rate: 'fast' must be a number",
        ),
        ("stage.betas=0.9", "stage.betas: 0.9 must be a list of 2, each a number at least 0"),
        ("stage.class=TeacherForcin", "no stage 'TeacherForcin'; did you mean 'TeacherForcing'"),
        ("blocks=framwise", "blocks: 'framwise' is none of framewise, chunkwise"),
        ("blocks=3", "blocks: 3 cannot cover 4 frames exactly; choose sizes that add up"),
        ("launch.threads=one", "launch.threads: 'one' must be a whole number at least 0"),
        ("seed=one", "seed"),
    ],
)
def test_settings(runs, refuse, word, message):
    before = set(runs.iterdir())
    said = refuse(runs, "fit", STAGE1, word)
    assert message in said, said
    assert set(runs.iterdir()) == before, "no folder of a run that never was"


@pytest.mark.parametrize(
    ("verb", "recipe", "words", "message"),
    [
        (
            "fit",
            "base",
            ["network.num_layers=many"],
            "network.num_layers: 'many' must be",
        ),
        ("curate", "clips", ["data.clips=0"], "curate.count: 0 must be at least 1"),
        (
            "curate",
            "clips",
            ["world.turn=often"],
            "curate.world.turn: 'often' must be",
        ),
        ("pairs", "causal_pairs", ["stages.pairs.intervals=6"], "choose a multiple"),
        ("sample", "sample", ["sampler=few_stpes"], "sample.sampler: 'few_stpes' is none of"),
    ],
)
def test_settings_of_other_verbs(trained, refuse, verb, recipe, words, message):
    if verb == "sample":
        words = [*words, f"needs.student={{folder: {finished(trained, 'base')}}}"]
    assert message in refuse(trained, verb, recipe, *words)


def test_more_than_there_is(trained, refuse):
    student = f"needs.student={{folder: {finished(trained, 'base')}}}"
    whole = "sampler=bidirectional_ode"
    said = refuse(trained, "sample", "sample", student, whole, "sampling.count=9")
    held_out = finished(trained, "heldout") / "shards"
    assert f"sample.count: prompts 8..16 wanted, {held_out} has 16" in said
    assert "lower it, or curate more" in said
    said = refuse(trained, *PAIRS, "stages.pairs.count=25")
    assert "pairs.count: 25 clips wanted" in said and "has 24" in said
    assert "lower it, or curate more" in said


# -- shards --------------------------------------------------------------------------------------


def damaged(runs: Path, folder: Path, hurt) -> str:
    """The setting for a copy of the clips with `hurt(tar)` done to its tar."""
    shutil.copytree(finished(runs, "clips") / "shards", folder / "shards")
    hurt(folder / "shards" / "000000.tar")
    return f"needs.data={{folder: {folder}}}"


def test_missing_shard(runs, refuse, tmp_path):
    said = refuse(runs, "fit", STAGE1, damaged(runs, tmp_path / "clips", Path.unlink))
    assert f"shard {tmp_path}/clips/shards/000000.tar of manifest.json is missing" in said
    assert "fetch it, or write the set again" in said


def test_truncated_tar(runs, refuse, tmp_path):
    def cut(tar: Path) -> None:
        tar.write_bytes(tar.read_bytes()[:-512])

    said = refuse(runs, "fit", STAGE1, damaged(runs, tmp_path / "clips", cut))
    assert f"{tmp_path}/clips/shards/000000.tar has" in said and "truncated copy?" in said
    assert "fetch it again" in said


def corrupt(member: str, at: int):
    def hurt(tar: Path) -> None:
        offset, _ = locate_members(tar)["train-000013"][member]
        data = bytearray(tar.read_bytes())
        data[offset + at : offset + at + 8] = b"\xff" * 8
        tar.write_bytes(data)

    return hurt


@pytest.mark.parametrize("member", ["latents.npy", "text.npy", "json"])
def test_corrupt_sample_is_named(runs, refuse, tmp_path, member):
    said = refuse(runs, "fit", STAGE1, damaged(runs, tmp_path / "clips", corrupt(member, 0)))
    assert f"sample 'train-000013' in {tmp_path}/clips/shards/000000.tar" in said


def test_changed_content_is_noticed(runs, refuse, tmp_path):
    """Numbers that are still numbers, but others than were written."""
    hurt = corrupt("latents.npy", 200)
    said = refuse(runs, "fit", STAGE1, damaged(runs, tmp_path / "clips", hurt))
    assert f"{tmp_path}/clips/shards/000000.tar has changed since it was written" in said
    assert "fetch or write it again" in said


def test_unfinished_set(runs, refuse, tmp_path):
    unfinish = lambda tar: tar.with_name("manifest.json").unlink()  # noqa: E731
    said = refuse(runs, "fit", STAGE1, damaged(runs, tmp_path / "clips", unfinish))
    assert f"{tmp_path}/clips/shards/manifest.json is missing" in said


# -- data, networks and stages that do not belong together ---------------------------------------


def test_prompts_in_place_of_clips(runs, refuse):
    said = refuse(runs, "fit", STAGE1, f"needs.data={{folder: {finished(runs, 'prompts')}}}")
    assert "manifest.json has no fields ['latents']" in said


def test_text_of_another_width(runs, refuse, tmp_path):
    narrow = lambda sample: sample.update(text=sample["text"][:, :6])  # noqa: E731
    data = rewritten(finished(runs, "clips"), tmp_path / "clips", narrow)
    said = refuse(runs, "fit", STAGE1, data)
    manifest = tmp_path / "clips" / "shards" / "manifest.json"
    assert f"{manifest}: text width 6, but the student was made for 8" in said
    assert "curate with the encoders" in said


def test_latents_of_other_channels(runs, refuse, tmp_path):
    thin = lambda sample: sample.update(latents=sample["latents"][:, :3])  # noqa: E731
    data = rewritten(finished(runs, "clips"), tmp_path / "clips", thin)
    said = refuse(runs, "fit", STAGE1, data)
    assert "manifest.json says latents [4, 3, 4, 4], the recipe wants [4, 4, 4, 4]" in said
    student = f"needs.student={{folder: {finished(runs, 'base')}}}"
    said = refuse(runs, "fit", STAGE1, data, student, "clip_shape=[4,3,4,4]")
    assert "stage.clip_shape: 3 channels, but the student " in said and "was made for 4" in said


def test_clips_of_another_length(runs, refuse):
    said = refuse(runs, "fit", STAGE1, "stage.clip_shape=[3,4,4,4]")
    assert "manifest.json says latents [4, 4, 4, 4], the recipe wants [3, 4, 4, 4]" in said
    assert "change the recipe's entry" in said


def test_pairs_of_another_past(trained, refuse, tmp_path):
    pairs = finished(trained, "causal_pairs")
    data = rewritten(pairs, tmp_path / "pairs", past="bidirectional")
    said = refuse(trained, "fit", "stage2_causal_ode", data)
    assert "says past is 'bidirectional', the recipe wants 'causal'" in said
    data = f"needs.data={{folder: {pairs}}}"
    said = refuse(trained, "fit", "stage2_self_forcing_ode", data)
    assert "says past is 'causal', the recipe wants 'bidirectional'" in said


def test_causal_pairs_of_other_blocks(trained, refuse):
    """A trajectory conditioned on the context of one partition is none of another's."""
    data = f"needs.data={{folder: {finished(trained, 'causal_pairs')}}}"
    said = refuse(trained, "fit", "stage2_causal_ode", data, "stage.blocks=2")
    assert "says blocks is [1, 1, 1, 1], the recipe wants [2, 2]" in said


def test_no_network_there(runs, refuse, tmp_path):
    student = f"needs.student={{folder: {tmp_path}}}"
    said = refuse(runs, "fit", STAGE1, student)
    assert f"{tmp_path}: no student/config.json" in said and "give a run" in said


@pytest.mark.parametrize("hurt", ["config", "weights", "cut"])
def test_damaged_network_folder(runs, refuse, tmp_path, hurt):
    """Another shape than config.json says, a weight that is missing, a file cut short."""
    base = Path(shutil.copytree(finished(runs, "base") / "student", tmp_path / "base"))
    (file,) = base.glob("*.safetensors")
    if hurt == "config":
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"ffn_dim": 48}))
    elif hurt == "weights":
        weights = load_file(file)
        del weights["proj_out.weight"]
        save_file(weights, file)
    else:
        file.write_bytes(file.read_bytes()[:-100])
    said = refuse(runs, "fit", STAGE1, f"needs.student={{folder: {base}}}")
    names = {"config": "ffn", "weights": "proj_out.weight", "cut": "is truncated"}
    assert f"error: {base}: " in said and names[hurt] in said and "copy the folder again" in said


# -- and the opposite ----------------------------------------------------------------------------


def test_the_helpers_change_nothing_else(runs, tmp_path):
    """An unchanged copy of the data trains, and like the original: refusals are for their cause."""
    clips = finished(runs, "clips")
    data = rewritten(clips, tmp_path / "clips")
    copy, source = (open_shards(f / "shards") for f in (tmp_path / "clips", clips))
    assert copy.fingerprint == source.fingerprint and np.array_equal(copy.negative, source.negative)
    there = shutil.copytree(runs, tmp_path / "runs")
    assert main(["fit", STAGE1, *SETTINGS, data, "--runs", str(there)]) == 0
    assert main(["fit", STAGE1, *SETTINGS, "--runs", str(there)]) == 0
    one, other = (path.parent for path in there.glob(f"{STAGE1}-????????/done.json"))
    assert weights(one) == weights(other)
