"""A small random network, prompts and noise for tests of rollouts."""

import torch
from torch import nn

from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, few_step_times
from lightning_modules.networks import Wan

SHAPE = (6, 4, 4, 4)


def make_net(**other) -> nn.Module:
    torch.manual_seed(0)
    net = Wan(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        ffn_dim=32,
        num_layers=2,
        freq_dim=16,
        **other,
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.requires_grad_(False)


def setting(keys=("a", "b", "c"), frames=SHAPE[0]):
    random = Randomness(1, 0, keys)
    return random, random.normal("text", (5, 8)), random.normal("noise", (frames, *SHAPE[1:]))


def few_steps(random, sizes, steps=2, first=4):
    shape = (sum(sizes), *SHAPE[1:])
    times = few_step_times(sizes, steps, first, 5.0)
    return FewSteps(times, lambda step: random.normal(f"renoise/{step}", shape))
