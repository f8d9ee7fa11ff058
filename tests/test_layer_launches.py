"""How many kernels a layer of Wan2.1-1.3B launches to generate a frame, and what they move."""

import re

import pytest
import torch
from torch._inductor import compile_fx, metrics
from torch._inductor.utils import run_and_get_code
from torch.profiler import ProfilerActivity, profile

from lightning_modules.networks.wan import merged_attention
from lightning_modules.networks.wan.block import WanBlock
from lightning_modules.networks.wan.precision import to_bfloat16

TOKENS, WIDTH, HEADS, PAST, TEXT = 1560, 1536, 12, 10, 512
PUBLISHED_BYTES = 1034e6  # read and written by the published code's 71 eager operations
MOST = 25


class Room:
    """Of a static cache that holds `PAST` frames (`static_cache.py`)."""

    def __init__(self, device):
        whole = [
            torch.randn(1, (PAST + 1) * TOKENS, HEADS, WIDTH // HEADS, device=device).bfloat16()
            for _ in range(2)
        ]
        self.room = tuple(each[:, PAST * TOKENS :] for each in whole)
        self.whole = tuple(whole)

    def __call__(self, keys, values):
        return self.whole


def frame(device):
    """A compiled layer's call for one frame."""
    with torch.device(device):
        layer = to_bfloat16(WanBlock(WIDTH, 8960, HEADS, "rms_norm_across_heads", True, 1e-6))
        layer.requires_grad_(False)
        layer.fuse()
        layer.compiled = True
        x = torch.randn(1, 1, TOKENS, WIDTH).bfloat16()
        prompt = [torch.randn(1, TEXT, HEADS, WIDTH // HEADS).bfloat16() for _ in range(2)]
        inputs = x, torch.randn(1, 1, 6, WIDTH), prompt, torch.randn(TOKENS, 1, 64, 2)
        room = Room(device)

    def call():
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            return layer(*inputs, None, room, None)[0]

    return call


def calls_in(code: str) -> list[str]:
    """Kernels that the code of a compiled part calls, in order."""
    body = code[code.index("def call(") :]
    names = r"cpp_fused\w*|extern_kernels\.\w+|torch\.ops\.causal_distillation\.\w+"
    return re.findall(rf"^\s+(?:\w+ = )?({names})(?:\.default)?\(", body, re.MULTILINE)


@pytest.mark.slow
def test_a_compiled_layer_on_a_cpu(monkeypatch):
    """Attention is one call for itself and one for the prompt; split keys add a merge."""
    monkeypatch.setattr(compile_fx.inductor_metrics_log, "isEnabledFor", lambda level: True)
    metrics.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        _, parts = run_and_get_code(frame("cpu"))
    kernels = [name for part in parts for name in calls_in(part)]
    products = [name for name in kernels if not name.startswith("cpp")]
    assert len(parts) == 3 and len(products) == 6, "q, k and v are one product"
    assert sum(name.endswith("linear_gelu") for name in products) == 1
    assert len(kernels) <= 12
    _, (merge,) = run_and_get_code(
        merged_attention._compiled_merge(),
        torch.empty(6, 2, 8), torch.empty(2, 6), [torch.rand(6, 2, 8)] * 4, [torch.rand(2, 6)] * 4,
    )  # fmt: skip
    assert len(kernels) + 2 + len(calls_in(merge)) <= MOST
    attention = 2 * (2 * TOKENS + (PAST + 1) * TOKENS * 2 + 2 * TOKENS + 2 * TEXT) * WIDTH
    assert metrics.num_bytes_accessed + attention < 0.6 * PUBLISHED_BYTES


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_a_compiled_layer_on_a_gpu():
    """All that the device does for a frame: kernels, and those that set memory."""
    call = frame("cuda")
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    launched = [event.name for event in seen.events() if event.device_type.name == "CUDA"]
    assert len(launched) <= MOST, launched
