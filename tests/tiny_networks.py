"""Minimal networks, inputs and attention masks, for tests of the network contract."""

import torch

from lightning_modules.networks import ClosedForm, TwoTimeWan, Wan
from lightning_modules.networks.closed_form.gaussian_world import GaussianWorld

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "ffn_dim": 64,
    "num_layers": 3,
}
F, C, H, W, L = 6, 16, 4, 6, 5
PARTITIONS = {"framewise": [1] * 6, "chunkwise": [3, 3], "ragged": [1, 2, 3]}
LAW = GaussianWorld(
    means=((1.0, 0.0), (-0.5, 1.0)), weights=(0.6, 0.4), spread=0.8, decay=0.9, noise=0.6,
    angle=0.7, frames=2 * F,
)  # fmt: skip


def tiny_wan() -> Wan:
    torch.manual_seed(0)
    return shake(Wan(**TINY)).eval()


def closed_form() -> ClosedForm:
    return ClosedForm.of(LAW, LAW.size)


def two_time_wan() -> TwoTimeWan:
    return shake(tiny_wan().with_second_time()).eval()


NETWORKS = {"wan": tiny_wan, "two_time_wan": two_time_wan, "closed_form": closed_form}
"""Every implementation of the contract."""


def asked(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Three clips that fit the network, clean and noisy, with levels and a text."""
    generator = torch.Generator().manual_seed(1)
    shape = (3, F, net.config.in_channels, *((H, W) if isinstance(net, Wan) else (1, 1)))
    batch = {
        "clean": torch.randn(shape, generator=generator),
        "noisy": torch.randn(shape, generator=generator),
        "t": torch.rand(3, F, generator=generator),
        "text": torch.randn(3, L, net.config.text_dim, generator=generator),
    }
    if isinstance(net, ClosedForm):
        batch["text"] = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]]])
    return batch


def shake(net: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter off its initial value, so that no path is silent."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


def owner(blocks: list[int]) -> list[int]:
    return [number for number, size in enumerate(blocks) for _ in range(size)]


def teacher_forced_matrix(blocks: list[int]) -> torch.Tensor:
    """[clean | noisy]: clean sees clean up to its block; noisy earlier clean and its own block."""
    block = owner(blocks)
    visible = torch.zeros(2 * F, 2 * F, dtype=torch.bool)
    for query in range(F):
        for key in range(F):
            visible[query, key] = block[key] <= block[query]
            visible[F + query, key] = block[key] < block[query]
            visible[F + query, F + key] = block[key] == block[query]
    return visible


def causal_matrix(blocks: list[int]) -> torch.Tensor:
    block = torch.tensor(owner(blocks))
    return block[None] <= block[:, None]
