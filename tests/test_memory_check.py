"""Memory checks before a verb loads anything, and what docs/ says about them."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from asked import asked
from minimal_runs import copied, only
from test_vidprom import run_folder

from datamodules.shards.reader import open_shards
from experiments.checkpoints.wan_keys import PUBLISHED
from experiments.launch.hardware import Launch
from experiments.launch.memory import check
from experiments.launch.memory import count as memory
from experiments.launch.memory.check import before_encoding, before_fit, before_generation
from experiments.launch.memory.count import FULL, GIB, HALF, Load, Zero, of_fit, of_rollout
from experiments.runs.folder import RunFolder
from experiments.verbs import curate
from experiments.worlds.wan.encoders import WanEncoders

DOCS = Path(__file__).parent.parent / "docs"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CLIP, TEXT = (21, 16, 60, 104), 512
SMALL, LARGE = (Load(PUBLISHED[size], CLIP, 1, TEXT, HALF) for size in ("1.3B", "14B"))


def step(stage, student, critic=None, teacher=None, average=False, zero=Zero()):  # noqa: B008
    loads = {"student": student, "critic": critic, "teacher": teacher}
    loads = {role: load for role, load in loads.items() if load}
    return of_fit(asked(stage), loads, average=average, checkpointing=True, zero=zero)


@pytest.fixture
def free(monkeypatch):
    """Bytes that are free, by the kind of device; a test may change them."""
    left = {"cpu": float("inf"), "cuda": float("inf")}
    monkeypatch.setattr(memory, "_free", lambda device: (left[device.type], device.type))
    return left


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_each_zero_stage_splits_what_it_splits(stage):
    """Devices hold their parts; what is not split, and what one device makes, stays whole."""

    def told(zero):
        items = step("AsymmetricDMD", SMALL, SMALL, LARGE, average=True, zero=zero)
        return {item.what: item.bytes for item in items}

    whole, parts, weights = told(Zero()), told(Zero(stage, 8)), 2 * SMALL.parameters * FULL
    split = ["AdamW: two moments of each weight"] if stage >= 1 else []
    split += ["their gradients, one network at a time"] if stage >= 2 else []
    if stage == 3:
        split += [what for what in whole if what.startswith(("weights of", "averages"))]
        assert "weights of student and critic, float32" in split and len(split) == 5
    own_copy = parts.pop("DeepSpeed's own copy of the weights, float32", 0)
    assert own_copy == (weights / 8 if stage in (1, 2) else 0)
    assert parts == {what: size / 8 if what in split else size for what, size in whole.items()}


def a_fit(tmp_path, **launch):
    folder = RunFolder(only(copied(tmp_path), "stage3_asymmetric_dmd"))
    data = SimpleNamespace(
        shards=open_shards(folder.need("data") / "shards"), batch=4, micro_batches=1
    )
    return lambda device: before_fit(folder, data, Launch(**launch), False, True, device)


def test_a_fit_under_deepspeed_is_refused_too(tmp_path, free):
    ask = a_fit(tmp_path, strategy="deepspeed", zero_stage=2, devices=2)
    ask(CUDA)
    free["cuda"] = 0.0
    with pytest.raises(ValueError, match=r"does not fit(.|\n)*DeepSpeed's own copy") as refused:
        ask(CUDA)
    assert "launch.zero_stage=3" in str(refused.value)


def test_the_processes_of_a_machine_read_their_networks_together(tmp_path, free, caplog):
    caplog.set_level(logging.INFO)
    ask = a_fit(tmp_path, devices=2)
    ask(CUDA)
    read = re.search(r"([\d.]+) GiB +in all 2 processes of this machine; inf .* cpu", caplog.text)
    needed = sum(
        sum(p.numel() for p in load.parameters()) * FULL for load in networks(tmp_path / "runs")
    )
    assert float(read[1]) == pytest.approx(2 * needed / GIB, abs=0.005)
    free["cpu"] = 1.5 * needed
    a_fit(tmp_path / "again", devices=1)(CUDA)
    with pytest.raises(ValueError, match="in all 2 processes of this machine"):
        ask(CUDA)


def networks(runs):
    """Student, critic and teacher of Stage 3."""
    from experiments.checkpoints.networks import ROLES, load_network

    folder = RunFolder(only(runs, "stage3_asymmetric_dmd"))
    return [load_network(folder.need(role)) for role in ROLES]


def test_encoders_are_told_by_their_headers(wan_folder, free, caplog):
    """As much as the loaded ones hold, and nothing is loaded for it."""
    caplog.set_level(logging.INFO)
    before_encoding(wan_folder, Launch(), CPU, vae=torch.float32, text_encoder=torch.bfloat16)
    encoders = WanEncoders(wan_folder, CPU, "float32", "bfloat16")
    assert not {"_vae", "_model"} & {*vars(encoders.vae), *vars(encoders.text)}
    for part, network in (("vae", encoders.vae._vae), ("text_encoder", encoders.text._model)):
        held = sum(p.numel() * p.element_size() for p in network.parameters())
        assert memory.of_encoder(wan_folder / part, 4 if part == "vae" else 2).bytes == held
    assert "weights of vae" in caplog.text and "weights of text_encoder" in caplog.text


def test_curation_is_refused_before_an_encoder_is_loaded(tmp_path, wan_folder, free, monkeypatch):
    free["cpu"] = 0.0
    monkeypatch.setattr(WanEncoders, "texts", lambda *_: pytest.fail("loaded"))
    folder = run_folder(tmp_path / "run", tmp_path / "prompts.txt", wan_folder)
    with pytest.raises(ValueError, match=r"weights of text_encoder(.|\n)*0\.00 GiB are free"):
        curate.run(folder.recipe, folder)


@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("device, value", [("cpu", 4), ("cuda", 2)])
def test_a_sampler_counts_the_vae_of_its_pixels(
    wan_folder, free, monkeypatch, caplog, pixels, device, value
):
    """In the dtype that it decodes in."""
    counted = []
    monkeypatch.setattr(
        check, "of_encoder", lambda *given: counted.append(given[1]) or memory.of_encoder(*given)
    )
    caplog.set_level(logging.INFO)
    manifest = {
        "autoencoder": {"class": "WanVAE", "folder": f"{wan_folder}"},
        "fields": {"text": {"shape": [5, 32]}},
    }
    before_generation(
        wan_folder, SimpleNamespace(manifest=manifest), Launch(), torch.device(device),
        clip_shape=(3, 16, 2, 4),
        sizes=(1, 1, 1), batch=1, cached=True, guided=False, half=False, pixels=pixels,
    )  # fmt: skip
    assert ("weights of vae" in caplog.text) == pixels and counted == [value] * pixels


# -- docs ------------------------------------------------------------------------------------


def rows(page: str, first: str) -> dict[str, list[str]]:
    """Cells of the page's table whose first column is headed so, by their first cell."""
    table = (DOCS / page).read_text().partition(f"| {first} |")[2].partition("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {cells[0]: cells[1:] for cells in lines}


def agrees(cell: str, size: float) -> bool:
    digits = len(cell.partition(".")[2])
    return cell == f"{size / GIB:.{digits}f}"


def test_the_docs_memory_per_gpu_is_what_is_counted():
    spread = Zero(), Zero(2, 8), Zero(3, 8), Zero(3, 64)
    asked = {
        "Stage 1 at 1.3B": ("TeacherForcing", SMALL),
        "Stage 2 CD, 1.3B / - / 1.3B": ("CausalCD", SMALL, None, SMALL),
        "Stage 3, 1.3B / 1.3B / 14B": ("AsymmetricDMD", SMALL, SMALL, LARGE, True),
        "Stage 3, 1.3B / 14B / 14B": ("AsymmetricDMD", SMALL, LARGE, LARGE, True),
        "Stage 3, 14B / 14B / 14B": ("AsymmetricDMD", LARGE, LARGE, LARGE, True),
    }
    found = rows("clusters.md", "student / fake score / real score or teacher")
    assert set(found) == set(asked)
    for name, networks_ in asked.items():
        for cell, zero in zip(found[name], spread, strict=True):
            items = step(*networks_, zero=zero)
            size = sum(item.bytes for item in items if item.exact and item.what != "KV cache")
            assert agrees(cell, size), f"{name}: {cell}, counted {size / GIB:.2f}"
    pasts = SMALL.keys_and_values(sum(range(21)))
    said = f"{pasts / GIB:.0f} GiB together for a clip at 1.3B"
    assert said in " ".join((DOCS / "clusters.md").read_text().split())


def test_the_docs_memory_of_each_step_is_what_is_counted():
    vae_bytes = 126_892_531 * FULL  # of the published VAE, as diffusers builds it
    asked = {
        "Stage 1, 20K steps": step("TeacherForcing", SMALL),
        "causal pairs, 80K": of_rollout(SMALL, 1, 21, guided=True),
        "bidirectional pairs, 80K": of_rollout(SMALL, 21, 0, guided=True),
        "Stage 2, causal ODE, 5K steps": step("CausalODE", SMALL),
        "Stage 2, SF-ODE, 5K steps": step("SelfForcingODE", SMALL),
        "Stage 2, causal CD, 5K steps": step("CausalCD", SMALL, None, SMALL),
        "Stage 2, causal DMD, 5K critic steps": step("CausalDMD", SMALL, SMALL, SMALL, True),
        "Stage 3, 1K critic steps, 14B score": step("AsymmetricDMD", SMALL, SMALL, LARGE, True),
        "946 prompts, 6,230 videos, 2 steps, one device": [
            *of_rollout(SMALL, 1, 21, guided=False), memory.Item("VAE", vae_bytes)
        ],
    }  # fmt: skip
    found = rows("wan.md", "step")
    for name, items in asked.items():
        size = sum(item.bytes for item in items)
        cell = found[name][2].removesuffix(" GiB")
        assert agrees(cell, size), f"{name}: {cell}, counted {size / GIB:.2f}"
