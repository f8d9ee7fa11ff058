"""The tiny pipeline is a Wan 2.1 pipeline: stock diffusers loads it whole and generates."""

import json

import torch
from diffusers import WanPipeline
from tiny_wan import SCORE, STUDENT, save_pipeline


def test_stock_diffusers_loads_and_runs_it(wan_folder):
    pipeline = WanPipeline.from_pretrained(wan_folder)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        "a seven moving left", height=32, width=32, num_frames=9, num_inference_steps=2,
        output_type="pt", generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    assert made.shape == (1, 9, 3, 32, 32) and made.isfinite().all() and made.std() > 0
    tokens = pipeline.tokenizer("a seven zebras")
    pieces = pipeline.tokenizer.convert_ids_to_tokens(tokens.input_ids)
    assert pieces == ["▁a", "▁seven", "▁", *"zebras", "</s>"]


def test_layout_and_sizes_are_the_published_ones(wan_folder):
    parts = json.loads((wan_folder / "model_index.json").read_text())
    assert {name for name in parts if isinstance(parts[name], list) and parts[name][0]} == {
        "transformer", "vae", "text_encoder", "tokenizer", "scheduler",
    }  # fmt: skip
    vae = json.loads((wan_folder / "vae" / "config.json").read_text())
    assert len(vae["latents_mean"]) == len(vae["latents_std"]) == vae["z_dim"] == 16
    assert sum(file.stat().st_size for file in wan_folder.rglob("*")) < 1e6


def test_score_and_student_share_all_but_the_transformer(wan_folder, wan_score_folder, tmp_path):
    def files(part):
        return [
            {p.name: p.read_bytes() for p in (f / part).iterdir()}
            for f in (wan_folder, wan_score_folder)
        ]

    for part in ("vae", "text_encoder", "tokenizer"):
        one, other = files(part)
        assert one == other
    assert SCORE.num_layers > STUDENT.num_layers
    one, other = files("transformer")
    assert one != other
    before = torch.random.get_rng_state()
    again = save_pipeline(tmp_path / "again")
    assert torch.equal(torch.random.get_rng_state(), before)
    (file,) = (again / "transformer").glob("*.safetensors")
    assert file.read_bytes() == one[file.name]
