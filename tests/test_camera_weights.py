"""Published weights of networks with cameras: names in both directions."""

import subprocess
import sys

import pytest
import torch
from posed_networks import posed_wan
from safetensors.torch import save_file
from test_exchange import published_names, published_weights
from tiny_wan import STUDENT

from experiments.checkpoints.networks import load_network
from experiments.checkpoints.wan_keys import to_diffusers, to_published


@pytest.mark.parametrize("name", ["self_attn.prope_o", "attn1.to_out_prope.0"])
def test_published_camera_weights_are_read_under_either_name(use, tmp_path, name):
    """minWM's, beside Wan's own names, and HY-WorldPlay's, beside those of diffusers."""
    weights = published_weights()
    if name.startswith("attn1"):
        weights = to_diffusers(weights)
    width = STUDENT.num_attention_heads * STUDENT.attention_head_dim
    for layer in range(STUDENT.num_layers):
        weights[f"blocks.{layer}.{name}.weight"] = torch.randn(width, width)
        weights[f"blocks.{layer}.{name}.bias"] = torch.randn(width)
    save_file(weights, tmp_path / "posed.safetensors")
    assert use("import", tmp_path / "posed.safetensors", "--as", tmp_path / "new")[0] == 0
    network = load_network(tmp_path / "new")
    assert network.config.cameras is True
    for layer, block in enumerate(network.blocks):
        assert torch.equal(block.attn1.to_prope.bias, weights[f"blocks.{layer}.{name}.bias"])
        assert torch.equal(block.attn1.to_prope.weight, weights[f"blocks.{layer}.{name}.weight"])
    published = to_published(network.state_dict())
    assert published.keys() - published_names() == {
        f"blocks.{layer}.self_attn.prope_o.{kind}"
        for layer in range(STUDENT.num_layers)
        for kind in ("weight", "bias")
    }


def test_stock_diffusers_ignores_the_cameras_and_says_so(tmp_path):
    """In a process of its own: what its loggers say depends on who has set them up before."""
    posed_wan().save_pretrained(tmp_path)
    program = (
        "from diffusers import WanTransformer3DModel;"
        f"stock = WanTransformer3DModel.from_pretrained({str(tmp_path)!r});"
        "assert not hasattr(stock.blocks[0].attn1, 'to_prope')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'cameras': True" in done.stderr and "to_prope" in done.stderr
