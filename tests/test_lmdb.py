"""Published LMDBs: synthetic ones with the real keys, and what is wrong with others."""

import lmdb
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from datamodules.curation.lmdb import LatentRows
from datamodules.shards.reader import open_shards
from datamodules.shards.work import ShardMaker
from datamodules.video import VideoDataModule
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import resolve
from experiments.verbs import curate

SHAPE = (3, 16, 2, 4)
TIMES = [1.0, 0.9375, 0.8333333333333334, 0.625]
TRAJECTORY = {"times": TIMES, "blocks": "framewise", "guidance": 6.0, "shift": 5.0}


def write(path, rows, prompts=None, **changes):
    """As the published scripts do: raw float16, shapes as text."""
    prompts = prompts or [f"prompt number {i}" for i in range(len(rows))]
    values = {
        "latents_shape": " ".join(map(str, rows.shape)).encode(),
        "prompts_shape": str(len(prompts)).encode(),
    }
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        values[f"latents_{i}_data"] = row.astype(np.float16).tobytes()
        values[f"prompts_{i}_data"] = prompt.encode()
    path.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as to:
        for key, value in (values | changes).items():
            if value is not None:
                to.put(key.encode(), value)
    return path


def rows(*leading):
    return np.random.default_rng(0).standard_normal((*leading, *SHAPE)).astype(np.float16)


def run_folder(path, source, wan, kind, trajectory, shape=SHAPE):
    section = {"source": "lmdb", "kind": kind, "clip_shape": list(shape), "fps": 16}
    section |= {"trajectory": trajectory, "text_dtype": "float32", "items_per_shard": 4}
    needs = {"latents": f"{source}", "wan": f"{wan}"}
    recipe = {"recipe": "lmdb", "verb": "curate", "seed": 0, "needs": needs, "curate": section}
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe)))
    return RunFolder(path)


def made(*arguments, **changes):
    folder = run_folder(*arguments, **changes)
    curate.run(folder.recipe, folder)
    return open_shards(folder.path / "shards")


@pytest.mark.parametrize("leading", [(6,), (6, 1)])
def test_clean_latents(tmp_path, wan_folder, leading):
    data = rows(*leading)
    source = write(tmp_path / "clean", data, [f"Ein Käfer, {i}" for i in range(6)])
    shards = made(tmp_path / "run", source, wan_folder, "clips", {})
    assert shards.manifest["kind"] == "clips" and shards.manifest["fps"] == 16
    assert [sample["caption"] for sample in shards] == [f"Ein Käfer, {i}" for i in range(6)]
    for sample, row in zip(shards, data.reshape(6, *SHAPE), strict=True):
        np.testing.assert_array_equal(sample["latents"], row)
        assert sample["text"].shape == (512, 32) and sample["text"].any()


def test_pairs_of_both_teachers(tmp_path, wan_folder):
    data = rows(3, 6)
    causal = write(tmp_path / "causal", data)
    shards = made(tmp_path / "c", causal, wan_folder, "causal_pairs", TRAJECTORY)
    manifest = shards.manifest
    assert (manifest["kind"], manifest["past"], manifest["blocks"]) == (
        "pairs",
        "causal",
        [1, 1, 1],
    )
    assert manifest["times"] == TIMES and manifest["guidance"] == 6.0
    np.testing.assert_array_equal(shards[2]["trajectory"], data[2, :5])
    np.testing.assert_array_equal(shards[2]["latents"], data[2, 5])
    plain = write(tmp_path / "plain", data[:, :5])
    shards = made(tmp_path / "b", plain, wan_folder, "bidirectional_pairs", TRAJECTORY)
    assert shards.manifest["past"] == "bidirectional" and "latents" not in shards.fields
    np.testing.assert_array_equal(shards[1]["trajectory"], data[1, :5])
    mixed = {"kind": "causal_pairs", "source": plain}
    with pytest.raises(
        ValueError, match=r"its rows are \[5, 3, 16, 2, 4\].*causal_pairs are \[6, 3"
    ):
        made(tmp_path / "x", mixed["source"], wan_folder, mixed["kind"], TRAJECTORY)


def test_rows_of_another_set_are_not_gone_on_with(tmp_path, wan_folder):
    """Half of a set was converted; then another LMDB of the same form lies there."""
    source = write(tmp_path / "set", rows(6))
    folder = run_folder(tmp_path / "run", source, wan_folder, "clips", {})
    ShardMaker(curate.plan(folder.recipe, folder), folder).help()
    write(tmp_path / "set", rows(6), [f"another prompt {i}" for i in range(6)])
    with pytest.raises(ValueError, match="begun with other settings, .* remove .* to start again"):
        curate.run(folder.recipe, folder)


def test_a_data_module_delivers_published_pairs(tmp_path, wan_folder):
    source = write(tmp_path / "in", rows(3, 6))
    shards = made(tmp_path / "run", source, wan_folder, "causal_pairs", TRAJECTORY)
    data = VideoDataModule(shards.folder, batch=2, steps=1, seed=0)
    data.require(kind="pairs", past="causal", blocks=[1, 1, 1], latents=SHAPE)
    batch = next(iter(data.train_dataloader()))
    assert batch["trajectory"].shape == (2, 5, *SHAPE) and batch["latents"].shape == (2, *SHAPE)
    assert batch["text"].shape == (2, 512, 32) and batch["text"].dtype == torch.float32


@pytest.mark.parametrize(("scale", "shift"), [(2.3, 0.0), (1.0, 0.8), (0.4, 0.0), (0.0, 0.0)])
def test_latents_that_are_not_normalised_are_refused(tmp_path, wan_folder, scale, shift):
    source = write(tmp_path / "raw", rows(6) * np.float16(scale) + np.float16(shift))
    with pytest.raises(ValueError, match=r"about 0 and 1; store \(z - latents_mean"):
        made(tmp_path / "run", source, wan_folder, "clips", {})


def test_it_is_the_clean_end_that_must_be_normalised(tmp_path, wan_folder):
    data = rows(3, 6)
    data[:, -1] *= 2.3
    source = write(tmp_path / "raw", data)
    with pytest.raises(ValueError, match="have mean .* and deviation 2.3"):
        made(tmp_path / "run", source, wan_folder, "causal_pairs", TRAJECTORY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_shape": None}, "no latents_shape; not an LMDB of latents"),
        ({"latents_shape": b"6 3 16"}, r"latents_shape is \[6, 3, 16\]; wanted are N, F, C"),
        ({"latents_shape": b"\x80\x04K\x01."}, "latents_shape is .* no row of numbers"),
        ({"latents_3_data": None}, "no latents_3_data; .* cut off"),
        ({"latents_3_data": b"12"}, r"latents_3_data has 2 bytes, \[1, 3, 16, 2, 4\] of float16"),
        ({"prompts_3_data": None}, "no prompts_3_data"),
        ({"prompts_shape": b"5"}, r"6 latents, but prompts_shape is \[5\]; convert or fetch"),
        ({"latents_shape": b"6 3 16 4 2"}, r"its rows are \[1, 3, 16, 4, 2\].*curate.clip_shape"),
    ],
)
def test_other_sets_and_damaged_ones_are_refused(tmp_path, wan_folder, changes, message):
    source = write(tmp_path / "set", rows(6), **changes)
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "run", source, wan_folder, "clips", {})


def test_what_is_no_lmdb_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such LMDB"):
        LatentRows(tmp_path / "gone")
    (tmp_path / "data.mdb").write_bytes(b"anything" * 4096)
    with pytest.raises(ValueError, match="does not open as an LMDB"):
        LatentRows(tmp_path)


def test_rows_that_nothing_can_be_trained_on_are_refused_one_by_one(tmp_path, wan_folder):
    """Row 0 is among those by which a set is checked to be normalised."""
    data = rows(8)
    data[0] = np.nan
    data[3, 0, 0, 0, 0] = np.inf
    data[5] = 0.5
    source = write(tmp_path / "set", data, prompts_6_data="草地上".encode("gbk"))
    folder = run_folder(tmp_path / "run", source, wan_folder, "clips", {})
    curate.run(folder.recipe, folder)
    shards = open_shards(folder.path / "shards")
    assert shards.keys == ["000001", "000002", "000004", "000007"]
    assert shards.manifest["refused"] == {"constant": 1, "not finite": 2, "prompt": 1}
    lines = (folder.path / "refused.csv").read_text().splitlines()
    assert "000003,not finite,1 of 384 latents are NaN or infinite" in lines


def test_a_state_of_a_trajectory_that_is_not_finite_refuses_its_row(tmp_path, wan_folder):
    data = rows(3, 6)
    data[1, 2, 0, 0, 0, 0] = np.nan
    source = write(tmp_path / "set", data)
    shards = made(tmp_path / "run", source, wan_folder, "causal_pairs", TRAJECTORY)
    assert shards.keys == ["000000", "000002"] and shards.manifest["refused"] == {"not finite": 1}


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_set_that_was_cut_off_is_refused_before_it_is_mapped(tmp_path, kept):
    """Reading beyond the end of a mapped file kills the process with SIGBUS."""
    file = write(tmp_path / "set", rows(40)) / "data.mdb"
    LatentRows(tmp_path / "set").check(39)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    said = rf"data.mdb: cut off: {file.stat().st_size} bytes, its pages are {len(whole)}; fetch"
    with pytest.raises(ValueError, match=said):
        LatentRows(tmp_path / "set")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_was_fetched_in_place_of_an_lmdb_is_refused(tmp_path, content):
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(ValueError, match="data.mdb: does not open as an LMDB"):
        LatentRows(tmp_path)


def test_a_set_in_parts_is_named(tmp_path):
    for part in range(3):
        write(tmp_path / "sets" / f"ODE6KCausal_chunkwise_{part}", rows(2))
    with pytest.raises(ValueError, match="the set is in 3 parts, .*chunkwise_0 and so on: give"):
        LatentRows(tmp_path / "sets")
    pieces = tmp_path / "my pieces"
    pieces.mkdir()
    for end in ("aa", "ab"):
        (pieces / f"data.mdb.part_{end}").write_bytes(b"half")
    command = r"cat '.*my pieces/data.mdb.part_'\* > '.*my pieces/data.mdb'"
    with pytest.raises(ValueError, match=f"join its pieces first: {command}"):
        LatentRows(pieces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pairs"}, "curate.kind: 'pairs' is none of clips, causal_pairs"),
        ({"trajectory": {"times": [0.5, 1.0], "blocks": 1}}, r"times: \[0.5, 1.0\] must fall"),
        ({"trajectory": {"times": [1.0, 0.0], "blocks": 1}}, "each a number above 0 and at most 1"),
        ({"trajectory": {"times": ["a"], "blocks": 1}}, "curate.trajectory.times: "),
        ({"trajectory": {"times": [1.0], "blocks": 2}}, "cannot cover 21 frames"),
        ({"text_dtype": "fp16"}, "curate.text_dtype: 'fp16' is none of"),
    ],
)
def test_bad_settings_are_refused(change, message):
    recipe = resolve("lmdb_causal_pairs", "wan1.3b").recipe
    recipe["curate"] |= change
    with pytest.raises(ValueError, match=message):
        curate.check(recipe)
