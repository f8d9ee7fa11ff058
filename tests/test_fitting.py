"""A network of another model is refused by its settings, before its weights are loaded."""

import json
import re
import shutil

import pytest
from diffusers import WanTransformer3DModel
from test_sample import write
from tiny_wan import TEXT_DIM

from experiments.checkpoints.networks import load_network, network_section
from experiments.generation.generation import require_given, require_network
from experiments.runs.recipe import resolve
from experiments.verbs import fit, pairs, sample
from lightning_modules.networks.encoders import WanText, WanVAE
from lightning_modules.networks.pipeline_folder import locate

SIZE = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 64}
KEY = "x.clip_shape"


def index(folder, **entries):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    "entries, said",
    [
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "transformer_2 is .*a second"),
        ({"boundary_ratio": 0.875}, "boundary_ratio is 0.875: two experts.*as Wan 2.2 has"),
        ({"expand_timesteps": True}, "expand_timesteps is True"),
        ({"_class_name": "WanImageToVideoPipeline"}, "'WanImageToVideoPipeline', not WanPipeline"),
    ],
)
def test_another_pipeline_is_refused_wherever_it_is_used(wan_folder, tmp_path, entries, said):
    folder = tmp_path / "W"
    shutil.copytree(wan_folder, folder)
    locate(folder), load_network(folder / "transformer")
    index(folder, **entries)
    said = f"{re.escape(str(folder))}/model_index.json: .*{said}.*Wan-AI/Wan2.1"
    for use in (locate, load_network, network_section, WanVAE, WanText):
        with pytest.raises(ValueError, match=said):
            use(folder)
    for part in (folder / "transformer", folder / "." / "transformer"):
        with pytest.raises(ValueError, match=said):
            load_network(part)
    for recipe, module, role in (
        ("sample", sample, "student"),
        ("causal_pairs", pairs, "teacher"),
        ("stage2_causal_cd", fit, "student"),
    ):
        settings = {f"needs.{role}": {"folder": str(folder)}}
        with pytest.raises(ValueError, match=said):
            module.check(resolve(recipe, "tiny", settings).recipe)


def wan(folder, **changes):
    settings = SIZE | {"in_channels": 16, "out_channels": 16, "text_dim": TEXT_DIM} | changes
    WanTransformer3DModel(**settings).save_pretrained(folder)
    next(folder.glob("*.safetensors")).write_bytes(b"")  # nothing loads it
    return folder


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"in_channels": 48, "out_channels": 48}, "x.clip_shape: 16 channels, .* made for 48"),
        ({"in_channels": 36}, "takes 36 channels and gives 16: an image-to-video"),
        ({"patch_size": (1, 4, 4)}, r"\[3, 16, 2, 4\] is not whole patches of the student, 1 x 4"),
        ({"patch_size": (2, 2, 2)}, "is not whole patches of the student, 2 x 2 x 2"),
    ],
)
def test_a_network_that_does_not_fit_the_clips(tmp_path, changes, said):
    section = network_section(wan(tmp_path, **changes))
    with pytest.raises(ValueError, match=said):
        require_network("student", section, KEY, [3, 16, 2, 4])


def test_what_a_config_does_not_say_is_the_constructors(tmp_path):
    section = network_section(wan(tmp_path))
    del section["patch_size"]
    require_network("student", section, KEY, [3, 16, 2, 4])
    with pytest.raises(ValueError, match="whole patches of the student, 1 x 2 x 2"):
        require_network("student", section, KEY, [3, 16, 3, 4])


def test_a_network_that_does_not_fit_the_data(tmp_path):
    shards = write(tmp_path / "clips", "clips")  # of 4 channels and text of width 8
    made = {"class": "Wan", "in_channels": 4, "out_channels": 4, "text_dim": 8}
    require_network("student", made, KEY, [8, 4, 4, 4], shards)
    for change, said in (
        ({"text_dim": 9}, "manifest.json: text width 8, but the student was made for 9"),
        ({"in_channels": 5, "out_channels": 5}, "latent channels 4, but the student was made for"),
    ):
        with pytest.raises(ValueError, match=said):
            require_network("student", made | change, KEY, [8, 4, 4, 4], shards)


@pytest.mark.parametrize(
    "recipe, module, role, section",
    [
        ("sample", sample, "student", "sample"),
        ("causal_pairs", pairs, "teacher", "pairs"),
        ("stage2_causal_cd", fit, "student", "stage"),
        ("stage3_asymmetric_dmd", fit, "teacher", "stage"),
    ],
)
def test_every_verb_asks_before_its_needs_are_made(tmp_path, recipe, module, role, section):
    settings = {f"needs.{role}": {"folder": str(wan(tmp_path / "wide", in_channels=36))}}
    with pytest.raises(ValueError, match=f"the {role} {tmp_path}/wide takes 36 channels"):
        module.check(resolve(recipe, "tiny", settings).recipe)
    settings = {f"needs.{role}": {"folder": str(wan(tmp_path / "good"))}}
    module.check(resolve(recipe, "tiny", settings).recipe)
    settings["clip_shape"] = [8, 16, 3, 4]
    with pytest.raises(ValueError, match=rf"{section}.clip_shape: \[8, 16, 3, 4\] is not whole"):
        module.check(resolve(recipe, "tiny", settings).recipe)


def test_a_recipes_own_network_is_asked_too():
    run = resolve("base", "tiny", {"clip_shape": [8, 16, 3, 4]})
    with pytest.raises(ValueError, match="stage.clip_shape: .* not whole patches of the student"):
        fit.check(run.recipe)


def test_runs_and_hub_ids_are_asked_when_they_are_there():
    needs = {"needs": {"student": "base-01234567", "teacher": "org/nothing"}}
    require_given(needs, KEY, [1, 1, 1, 1])
