"""Few-step generation, timed in the paper's protocol and end to end.

The paper's (the published ``inference.py --report_timing``, batch 1):

    first frame   the denoising passes of the first block: no text, cache set-up or cache update
    throughput    decoded pixel frames / (text encoding + all passes and cache updates), no VAE

The published code also updates the cache after the last block, which is never read.

End to end, the first frame includes noise, text encoding, cache and decoding, and throughput
includes noise and the VAE: drawn and decoded as ``sample`` does, on the CPU and by a VAE of its
dtype, to 8-bit pixels on the host. No mp4 file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.bench.clock import Protocol, measure, now, quantiles
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.row import Row, Task
from experiments.bench.vae import decode, said
from experiments.launch.hardware import Launch, accelerated
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import (
    FewSteps,
    Past,
    cut,
    few_step_times,
    rollout,
    stream,
)
from lightning_modules.networks.encoders.autoencoders import to_video
from lightning_modules.networks.tally import Call, calls_of

FIRST_STEPS = 4  # of the first block, independent of the others (sec. 3.2)
VARIANTS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("training", {}),
    ("separate", {}),
    ("fused", {}),
    ("fused", {"cuda_graphs": True}),
    ("fused", {"compile": True, "cuda_graphs": True}),
)
"""How the past is kept, as in training or in fixed buffers (`fast_past.py`), and how calls are made
(``launch``; on CUDA only). Compiling is last: it changes the network for good."""


def variants(device: torch.device) -> Iterator[tuple[str, str, dict[str, bool]]]:
    """Those of this device: the name, how the past is kept, and options of ``launch``."""
    for past, options in VARIANTS:
        if not options or device.type == "cuda":
            yield "+".join([past, *options]), past, options


def bench(subject: Subject, protocol: Protocol, few_steps: Sequence[int]) -> Iterator[Task]:
    """For each number of steps and each KV-cache implementation: denoising alone and end to end.

    Args:
        few_steps: of every block but the first.
    """

    @cache
    def networks() -> tuple[nn.Module, nn.Module, nn.Module]:
        """Student, text encoder and VAE, shared by all rows."""
        student = subject.network(subject.tree["network"])
        return student, subject.text_encoder(), subject.vae()

    def row(past: str, options: dict[str, bool], steps: int, name: str, peak: Peak) -> list[Row]:
        student, encoder, vae = networks()
        hurry = accelerated(student, Launch(**options), subject.device)
        return [Rollout(subject, hurry, encoder, vae, steps, past).row(peak, protocol, name)]

    for how, past, options in variants(subject.device):
        for steps in few_steps:
            name = f"rollout/{steps}/{how}"
            yield Task(name, partial(row, past, options, steps, name))


class Rollout:
    """One configuration of few-step generation."""

    def __init__(
        self,
        subject: Subject,
        student: VelocityNetwork,
        encoder: nn.Module,
        vae: nn.Module,
        steps: int,
        past: str,
    ) -> None:
        self.subject, self.student, self.encoder, self.vae = subject, student, encoder, vae
        self.steps, self.how = steps, past
        vocabulary = encoder.config.vocab_size
        self.words = torch.randint(vocabulary, (1, subject.text_tokens), device=subject.device)
        self._kept: Past | None = None
        self._clips = 0

    @torch.no_grad()
    def generate(self) -> dict[str, Any]:
        """Generate a clip from prompt to pixels, timing every stage."""
        device, sizes = self.subject.device, self.subject.blocks
        begun = now(device)
        noise, later = self._draw()
        denoise = self._denoise(later.__getitem__)
        start = now(device)
        with self.subject.autocast():
            text = self.encoder(self.words).last_hidden_state.float()
            encoded = now(device)
            past = self._past(text)
            ready = now(device)
            marks, blocks = [], []
            for block in stream(past, cut(noise), sizes, denoise):
                marks.append(now(device))
                blocks.append(block)
        self._pixels(blocks[0])
        first_pixels = now(device) - marks[-1]
        before = now(device)
        self._pixels(torch.cat(blocks, dim=1))
        pixels = now(device) - before
        return {
            "noise_s": start - begun,
            "text_s": encoded - start,
            "past_s": ready - encoded,
            "first_block_s": marks[0] - ready,
            "denoise_s": marks[-1] - ready,
            "first_pixels_s": first_pixels,
            "pixels_s": pixels,
            "block_s": [late - soon for soon, late in zip(marks, marks[1:], strict=False)],
        }

    def row(self, peak: Peak, protocol: Protocol, name: str) -> Row:
        """Median over the protocol's repetitions."""
        first_times = partial(getattr, self.student, "first_times", 0)
        timing, runs = measure(self.generate, self.subject.device, protocol, first_times)
        timing = replace(timing, seconds=tuple(run["denoise_s"] for run in runs))
        calls = self.calls()
        first = calls[:FIRST_STEPS]
        frames = self.subject.pixel_frames()
        later = sum((run["block_s"] for run in runs), [])

        def seconds(*parts: str) -> list[float]:
            return [sum(run[part] for part in parts) for run in runs]

        def fps(*parts: str) -> dict[str, float]:
            return quantiles([frames / taken for taken in seconds(*parts)])

        return Row(
            name,
            timing,
            self._least(calls, peak),
            sum(map(self.subject.work, calls), Work()),
            more={
                "calls": len(calls),
                "latency_first_frame_denoise_s": quantiles(seconds("first_block_s")),
                "latency_first_frame_denoise_roofline_s": self._least(first, peak),
                "latency_first_frame_e2e_s": quantiles(
                    seconds("noise_s", "text_s", "past_s", "first_block_s", "first_pixels_s")
                ),
                "throughput_no_vae_fps": fps("text_s", "past_s", "denoise_s"),
                "throughput_no_vae_roofline_fps": frames / self._least(calls, peak),
                "throughput_e2e_fps": fps("noise_s", "text_s", "past_s", "denoise_s", "pixels_s"),
                "steady_state_fps": self._steady(later, frames),
                "text_s": quantiles(seconds("text_s")),
                "noise_s": quantiles(seconds("noise_s")),
                "pixels_s": quantiles(seconds("pixels_s")),
                "vae_dtype": said(next(self.vae.parameters()).dtype),
                "pixel_frames": frames,
            },
        )

    def _draw(self) -> tuple[Tensor, dict[int, Tensor]]:
        """A new clip's noise, and that of later steps, as ``sample`` draws them."""
        shape, self._clips = self.subject.shape, self._clips + 1
        random = Randomness("bench", 0, [f"clip-{self._clips}"], self.subject.device)
        later = range(1, max(self.steps, FIRST_STEPS))
        return random.normal("noise", shape), {
            step: random.normal(f"renoise/{step}", shape) for step in later
        }

    def _pixels(self, latents: Tensor) -> None:
        """Decoded to where ``sample`` stores them from."""
        to_video(decode(self.vae, latents)).cpu()

    def _denoise(self, renoise: Callable[[int], Tensor]) -> FewSteps:
        subject = self.subject
        times = few_step_times(subject.blocks, self.steps, FIRST_STEPS, subject.tree["shift"])
        return FewSteps(times, renoise)

    def _past(self, text: Tensor) -> Past:
        """A new KV cache, or that of the last clip, reset: its buffers are reused."""
        if self.how == "training" or self._kept is None:
            self._kept = self._new_past(self.student, text)
            return self._kept
        return self._kept.restart(text)

    def _new_past(self, net: VelocityNetwork, text: Tensor) -> Past:
        if self.how == "training":
            return Past(net, text)
        return FastPast(net, text, frames=sum(self.subject.blocks), commit=self.how)

    def calls(self) -> list[Call]:
        """Calls of the network for one clip, recorded by the same loop on 1 x 1 latents."""
        sizes, text = self.subject.blocks, torch.zeros(1, 1, 1)
        noise = torch.zeros(1, sum(sizes), 1, 1, 1)
        denoise = self._denoise(lambda step: noise)
        return calls_of(lambda net: rollout(self._new_past(net, text), noise, sizes, denoise))

    def _least(self, calls: list[Call], peak: Peak) -> float:
        """Roofline seconds: each call is either compute bound or memory bound."""
        return sum(peak.least_seconds(self.subject.work(call)) for call in calls)

    def _steady(self, block_seconds: list[float], frames: int) -> float | None:
        """Pixel frames of a block over the median time between blocks; None with one block."""
        if not block_seconds:
            return None
        per_frame = (frames - 1) / (sum(self.subject.blocks) - 1)
        return per_frame * self.subject.blocks[-1] / quantiles(block_seconds)["median"]
