"""Few-step generation, timed in the paper's protocol and end to end.

The paper's (the published ``inference.py --report_timing``, batch 1):

    first frame   the denoising passes of the first block alone: no text, no cache, no commit
    throughput    decoded pixel frames / (text encoding + every pass and commit), no VAE

End to end the first frame comes with its text, its cache and its pixels, and throughput counts the
VAE. The published code commits the last block as well, which nobody reads; ours does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.bench import count
from experiments.bench.clock import Protocol, measure, now, quantiles
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.report import Row, Task
from experiments.bench.vae import decode
from experiments.launch.hardware import Launch, accelerated
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, stream

FIRST_STEPS = 4  # of the first block, whatever the others have (sec. 3.2)
VARIANTS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("training", {}),
    ("separate", {}),
    ("fused", {}),
    ("fused", {"cuda_graphs": True}),
    ("fused", {"compile": True, "cuda_graphs": True}),
)
"""How the past is kept, as in training or in fixed buffers (`fast_past.py`), and how calls are made
(``launch``; on CUDA only). Compiling is last: it changes the network for good."""


def bench(subject: Subject, peak: Peak, protocol: Protocol, few_steps: list[int]) -> Iterator[Task]:
    """For each number of steps and each way to keep the past: the denoising alone and end to end.

    Args:
        few_steps: of every block but the first.
    """

    @cache
    def networks() -> tuple[nn.Module, nn.Module, nn.Module]:
        """Student, text encoder and VAE: of all rows."""
        student = subject.network(subject.tree["network"])
        return student, subject.text_encoder(), subject.vae()

    def row(past: str, options: dict[str, bool], steps: int, name: str) -> list[Row]:
        student, encoder, vae = networks()
        hurry = accelerated(student, Launch(**options), subject.device)
        return [Rollout(subject, hurry, encoder, vae, steps, past).row(peak, protocol, name)]

    for past, options in VARIANTS:
        if options and subject.device.type != "cuda":
            continue
        for steps in few_steps:
            name = ", ".join([f"rollout, {steps} steps, past: {past}", *options])
            yield Task(name, partial(row, past, options, steps, name))


class Rollout:
    """One way of generating a clip."""

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
        self.noise = torch.randn(1, *subject.shape, device=subject.device)
        vocabulary = encoder.config.vocab_size
        self.words = torch.randint(vocabulary, (1, subject.text_tokens), device=subject.device)
        self._kept: FastPast | None = None

    @torch.no_grad()
    def generate(self) -> dict[str, Any]:
        """A clip from its prompt to its pixels, with the clock at every step of the way."""
        device, sizes = self.subject.device, self.subject.blocks
        times = few_step_times(sizes, self.steps, FIRST_STEPS, self.subject.tree["shift"])
        denoise = FewSteps(times, lambda step: torch.randn_like(self.noise))
        start = now(device)
        with self.subject.autocast():
            text = self.encoder(self.words).last_hidden_state.float()
            encoded = now(device)
            past = self._past(text)
            ready = now(device)
            marks, blocks = [], []
            for block in stream(past, self.noise, sizes, denoise):
                marks.append(now(device))
                blocks.append(block)
        decode(self.vae, blocks[0])
        first_pixels = now(device) - marks[-1]
        before = now(device)
        decode(self.vae, torch.cat(blocks, dim=1))
        pixels = now(device) - before
        return {
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
        timing, runs = measure(self.generate, self.subject.device, protocol)
        timing = replace(timing, seconds=tuple(run["denoise_s"] for run in runs))
        passes = self._passes()
        first = passes[:FIRST_STEPS]
        frames = self.subject.pixel_frames()
        later = sum((run["block_s"] for run in runs), [])
        return Row(
            name,
            timing,
            self._least(passes, peak),
            sum(map(self._work, passes), Work()),
            more={
                "calls": len(passes),
                "latency_first_frame_denoise_s": quantiles([r["first_block_s"] for r in runs]),
                "latency_first_frame_denoise_roofline_s": self._least(first, peak),
                "latency_first_frame_e2e_s": quantiles(
                    [
                        r["text_s"] + r["past_s"] + r["first_block_s"] + r["first_pixels_s"]
                        for r in runs
                    ]
                ),
                "throughput_no_vae_fps": quantiles(
                    [frames / (r["text_s"] + r["past_s"] + r["denoise_s"]) for r in runs]
                ),
                "throughput_no_vae_roofline_fps": frames / self._least(passes, peak),
                "throughput_e2e_fps": quantiles(
                    [
                        frames / (r["text_s"] + r["past_s"] + r["denoise_s"] + r["pixels_s"])
                        for r in runs
                    ]
                ),
                "steady_state_fps": self._steady(later, frames),
                "text_s": quantiles([r["text_s"] for r in runs]),
                "pixel_frames": frames,
            },
        )

    def _past(self, text: Tensor) -> Past:
        """A new past, or the empty one of the last clip: its buffers stay, as they would live."""
        if self.how == "training":
            return Past(self.student, text)
        if self._kept is None:
            frames = sum(self.subject.blocks)
            self._kept = FastPast(self.student, text, frames=frames, commit=self.how)
            return self._kept
        return self._kept.restart(text)

    def _passes(self) -> list[count.Pass]:
        sizes = self.subject.blocks
        steps = [FIRST_STEPS] + [self.steps] * (len(sizes) - 1)
        return count.rollout(sizes, steps, fused=self.how == "fused")

    def _work(self, step: count.Pass) -> Work:
        subject = self.subject
        return count.work(
            subject.size(), step, subject.tokens, subject.text_tokens, subject.value_bytes
        )

    def _least(self, passes: list[count.Pass], peak: Peak) -> float:
        """Each pass is bound by its own products or its own memory."""
        return sum(peak.least_seconds(self._work(step)) for step in passes)

    def _steady(self, block_seconds: list[float], frames: int) -> float | None:
        """Pixel frames of a block over the median time between blocks; None with one block."""
        if not block_seconds:
            return None
        per_frame = (frames - 1) / (sum(self.subject.blocks) - 1)
        return per_frame * self.subject.blocks[-1] / quantiles(block_seconds)["median"]
