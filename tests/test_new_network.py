"""A network is a folder: written in a test, it is trained and sampled by recipe, and counted never.

`Toy` sees one frame at a time, so it keeps the contract with next to nothing.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from minimal_runs import SETTINGS, copied, finished

from datamodules.shards.reader import open_shards
from experiments.__main__ import main
from experiments.bench.sizes import NetworkSize
from experiments.checkpoints.convert import export_network
from experiments.checkpoints.networks import bf16, fresh_network, load_network
from experiments.launch.hardware import Launch, accelerated
from experiments.runs.config import extend
from lightning_modules import networks

SAYS = 'NETWORKS = {"ToyModel": "network.Toy"}\n'
TOY = """
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from lightning_modules.networks import KVCache


class Toy(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, in_channels: int, text_dim: int, width: int = 6) -> None:
        super().__init__()
        self.read = nn.Linear(in_channels + text_dim + 1, width)
        self.write = nn.Linear(width, in_channels)

    def new_cache(self, frames=None):
        return KVCache(layers=1)

    def forward(
        self, x, t, text, *, frames, visible=None, cache=None, write_cache=False, predicted=None
    ):
        pixels = x.movedim(2, -1)
        levels = t[:, :, None, None, None].expand(*pixels.shape[:-1], 1)
        words = text.mean(1)[:, None, None, None].expand(*pixels.shape[:-1], -1)
        hidden = self.read(torch.cat([pixels, levels, words], -1)).relu()
        if write_cache:
            cache.append(frames.tolist(), [(t[:, :, None, None], t[:, :, None, None])])
        first = 0 if predicted is None else x.shape[1] - predicted
        return self.write(hidden[:, first:]).movedim(-1, 2).float()

    def to_json_string(self):
        return super().to_json_string().replace('"Toy"', '"ToyModel"')
"""
SECTION = {"class": "Toy", "in_channels": 4, "text_dim": 8}
NETWORK = "network={class: Toy, in_channels: 4, text_dim: 8}"


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch) -> None:
    """The folder `toy` among the networks."""
    folder = tmp_path / "networks" / "toy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(SAYS)
    (folder / "network.py").write_text(TOY)
    monkeypatch.setattr(networks, "__path__", [*networks.__path__, str(folder.parent)])
    yield
    for name in [name for name in sys.modules if name.startswith(f"{networks.__name__}.toy")]:
        del sys.modules[name]
    vars(networks).pop("toy", None)


def call(runs: Path, *words: str) -> int:
    return main([*words[:2], *SETTINGS, *words[2:], "--runs", str(runs)])


@pytest.fixture
def runs(tmp_path) -> Path:
    """Data alone."""
    return copied(tmp_path, "base", "continued_base", "stage")


def test_it_is_trained_and_sampled_by_recipe(runs, caplog):
    caplog.set_level(logging.WARNING)
    more = ["launch.gradient_checkpointing=true", "launch.cuda_graphs=true"]
    assert call(runs, "fit", "base", NETWORK, *more) == 0
    base = finished(runs, "base")
    config = json.loads((base / "student" / "config.json").read_text())
    assert config["_class_name"] == "ToyModel" and config["width"] == 6
    trained, fresh = load_network(base), fresh_network(SECTION, 0)
    assert type(trained).__name__ == "Toy"
    assert not torch.equal(trained.write.weight, fresh.write.weight)
    assert fresh.write.weight.any(), "it has no zero_head()"
    words = ["sampler=bidirectional_ode", "needs.student={recipe: base}"]
    assert call(runs, "sample", "sample", NETWORK, *more, *words) == 0
    assert len(open_shards(finished(runs, "sample") / "shards")) == 8
    said = caplog.text
    assert "memory: not counted for Toy (student)" in said
    assert "memory: not counted for Toy (network)" in said
    assert "launch.gradient_checkpointing: Toy (student) does not offer it" in said
    assert "have no effect here" in said and "a Toy on cpu" in said


def test_what_it_does_not_offer_leaves_it_as_it_is(caplog):
    toy = fresh_network(SECTION, 0)
    assert bf16(toy) is toy and toy.write.weight.dtype == torch.float32
    cuda = torch.device("cuda")
    assert accelerated(toy, Launch(cuda_graphs=True), cuda) is toy
    assert "a Toy on cuda" in caplog.text


def test_operations_are_refused_even_if_its_arguments_are_called_as_wans():
    lookalike = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 1}
    with pytest.raises(ValueError, match="not counted for Toy"):
        NetworkSize.of(SECTION | lookalike)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("{class: Toi}", "there is no network 'Toi'; did you mean 'Toy'?"),
        ("{class: Toy, in_channels: 4, text_dim: 8, widht: 2}", "network.widht: Toy takes no such"),
        ("{class: Toy, in_channels: 4}", "network.text_dim is missing: Toy needs it"),
        (
            "{class: Toy, in_channels: 4, text_dim: [8]}",
            "network.text_dim: [8] must be",
        ),
        ("{class: Toy, in_channels: 4, text_dim: 7}", "text width 8, but the student was made for"),
    ],
)
def test_a_wrong_section_is_refused(runs, capsys, network, message):
    assert call(runs, "fit", "base", f"network={network}") != 0
    assert message in capsys.readouterr().err
    assert not list(runs.glob("base-*/student"))


def test_a_folder_of_an_unknown_class_is_refused_with_those_there_are(tmp_path):
    fresh_network(SECTION, 0).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("ToyModel", "TojModel"))
    with pytest.raises(ValueError, match=r"config.json: _class_name is 'TojModel', none of .*Toy"):
        load_network(tmp_path)


def test_a_scale_on_top_of_another_replaces_a_network_as_a_whole():
    under = {"network": {"num_layers": 1, "text_dim": 2}}
    assert extend(under, {"network": SECTION}, Path("own"), Path("under")) == {"network": SECTION}


def test_asking_which_there_are_imports_no_torch():
    asking = "from lightning_modules.networks import classes; import sys; classes()"
    code = f"{asking}; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_it_is_not_exported_as_a_wan(tmp_path):
    fresh_network(SECTION, 0).save_pretrained(tmp_path / "toy")
    with pytest.raises(ValueError, match=r"a ToyModel is not exported"):
        export_network(tmp_path / "toy", tmp_path / "out")
    assert not (tmp_path / "out").exists()
