"""Encoding and decoding a clip by Wan's VAE.

Operations are counted by torch on meta tensors (causal convolutions with changing strides have no
short formula); the lower bound of the bytes is weights, pixels and latents once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.clock import Protocol, measure
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.row import Row, Task
from lightning_modules.networks.encoders.wan_vae import wan_vae_dtype

Action = Callable[[nn.Module, Tensor], Tensor]


def bench(subject: Subject, protocol: Protocol) -> Iterator[Task]:
    """Both directions, one clip: in the dtype of ``sample``, float32 and that of the network.

    Decoding is timed as ``sample`` does it, and where that is by the fused VAE, by the plain one.
    """

    @torch.inference_mode()
    def row(name: str, action: Action, dtype: torch.dtype, plain: bool, peak: Peak) -> list[Row]:
        vae = subject.vae(dtype, plain)
        latents = torch.randn(1, *subject.shape, device=subject.device)
        video = decode(vae, latents)
        given = video if action is encode else latents
        timing, _ = measure(lambda: action(vae, given), subject.device, protocol)
        moved = sum(p.numel() for p in vae.parameters()) + video.numel() + latents.numel()
        work = Work(_operations(subject, action, given), moved * dtype.itemsize)
        frames = video.shape[2]
        more = {"pixel_frames": frames, "fps": frames / timing.median, "dtype": said(dtype)}
        return [Row(name, timing, peak.least_seconds(work), work, more=more)]

    usual = wan_vae_dtype(subject.device)
    for action in (encode, decode):
        for dtype in dict.fromkeys([usual, torch.float32, subject.dtype]):
            other = "" if dtype == usual else f"/{said(dtype)}"
            name = f"vae/{action.__name__}{other}"
            fused = action is decode and not other and subject.fuses
            yield Task(name, partial(row, name, action, dtype, not fused))
            if fused:
                yield Task(f"{name}/plain", partial(row, f"{name}/plain", action, dtype, True))


def said(dtype: torch.dtype) -> str:
    """Its name."""
    return str(dtype).removeprefix("torch.")


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents ``[B, F, C, h, w]`` -> pixels ``[B, 3, T, H, W]``."""
    x = latents.transpose(1, 2).to(next(vae.parameters()).dtype)
    return vae.decode(x, return_dict=False)[0]


def encode(vae: nn.Module, video: Tensor) -> Tensor:
    """Pixels ``[B, 3, T, H, W]`` -> latents ``[B, F, C, h, w]``."""
    return vae.encode(video).latent_dist.mode().transpose(1, 2)


def _operations(subject: Subject, action: Action, given: Tensor) -> float:
    """Operations of a call, counted on the meta device."""
    nowhere = Subject(subject.tree, torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        action(nowhere.vae(given.dtype, plain=True), torch.empty_like(given, device="meta"))
    return float(counter.get_total_flops())
