"""State-dict keys of Wan: the published code's, diffusers', and the conversion between them.

Weights trained by CausVid, Self Forcing and both Causal Forcing codes have the published names
behind the prefixes of FSDP and checkpointing wrappers. Beware of one swap: the affine norm
before cross-attention is `norm3` in the published code and `norm2` in diffusers.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.checkpoints.networks import meta_network

Weights = dict[str, Tensor]

_COMMON = {
    "patch_size": [1, 2, 2],
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "1.3B": _COMMON | {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
    "14B": _COMMON | {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824},
}
"""Configs of Wan2.1-T2V (Wan 2025, arXiv 2503.20314; config.json of the published folders)."""

_STORED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_HOLDERS = re.compile(r"^((model|module|diffusion_model)\.)+")
_CAMERA_OUTPUT = re.compile(r"\.attn1\.(prope_o|to_out_prope\.0)\.")
"""The output projection of the heads under PRoPE, in minWM's and in HY-WorldPlay's files."""
# diffusers converts in one direction only; this is the other.
_TO_PUBLISHED = [
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.to_prope\.", ".prope_o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),
]


def unwrapped(weights: Mapping[str, Tensor]) -> Weights:
    """The same weights without wrapper prefixes.

    Raises:
        ValueError: two names differ only in their wrappers.
    """
    plain: Weights = {}
    for name, tensor in weights.items():
        bare = _HOLDERS.sub("", _WRAPPERS.sub("", name))
        if bare in plain:
            raise ValueError(f"{name}: a second {bare} without wrappers; not one network's weights")
        plain[bare] = tensor
    return plain


def to_diffusers(weights: Mapping[str, Tensor]) -> Weights:
    """Weights under diffusers' names, from diffusers' or published names without wrappers."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    named = dict(weights)
    if not any(name.startswith("condition_embedder.") for name in weights):
        named = convert_wan_transformer_to_diffusers(named)
    return {_CAMERA_OUTPUT.sub(".attn1.to_prope.", name): w for name, w in named.items()}


def to_published(weights: Mapping[str, Tensor]) -> Weights:
    """Weights under the published code's names, from diffusers' names."""
    return {_published(name): tensor for name, tensor in weights.items()}


def _published(name: str) -> str:
    for pattern, replacement in _TO_PUBLISHED:
        name = re.sub(pattern, replacement, name)
    return name


def config_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of a published size, from the shapes of weights under diffusers' names.

    Raises:
        ValueError: no published size has these shapes.
    """
    width = weights["patch_embedding.weight"].shape[0] if "patch_embedding.weight" in weights else 0
    layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    for config in PUBLISHED.values():
        if (width, layers) == (_width(config), config["num_layers"]):
            return config
    sizes = ", ".join(f"{name}: {c['num_layers']} x {_width(c)}" for name, c in PUBLISHED.items())
    raise ValueError(
        f"{layers} layers of width {width} are of no published size ({sizes}); say which it is:"
        " --config, a folder with its config.json"
    )


def has_cameras(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights under diffusers' names have heads under PRoPE."""
    return any(".attn1.to_prope." in name for name in weights)


def check_fits(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly those of a network, naming the first few that differ.

    Raises:
        ValueError: unknown or missing names, another shape, or no floating-point numbers of 16 bits
            or more.
    """
    network = meta_network(config)
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    differences = {
        "unknown": sorted(weights.keys() - expected.keys()),
        "missing": sorted(expected.keys() - weights.keys()),
    }
    if any(differences.values()):
        raise ValueError("; ".join(_some(what, n) for what, n in differences.items() if n))
    for name, shape in expected.items():
        if (found := list(weights[name].shape)) != shape:
            raise ValueError(f"{name} is {found}, its config says {shape}")
        if (kind := weights[name].dtype) not in _STORED:
            raise ValueError(
                f"{name} is stored as {kind}: quantised weights are not read, take those in one of"
                f" {', '.join(map(str, _STORED))}"
            )


def _some(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what} weights ({', '.join(names[:3])}{more})"


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]
