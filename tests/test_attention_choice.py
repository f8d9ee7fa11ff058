"""Which attention kernel a device takes, said once a run; one that cannot run is refused."""

import sys
from types import SimpleNamespace

import pytest
import torch
from test_attention_backends import CPU, CUDA, MATRICES, forced, heads  # noqa: F401

from lightning_modules.networks.wan import attention
from lightning_modules.networks.wan.attention import attend, attention_mask, choose, use


@pytest.mark.parametrize(
    "device, half, small, kernel",
    [
        (CPU, False, True, "dense"),
        (CPU, True, False, "dense"),
        (CUDA, True, False, "merged"),
        (CUDA, True, True, "merged"),
        (CUDA, False, True, "dense"),
        (CUDA, False, False, "flex"),
    ],
)
def test_automatic_choice(device, half, small, kernel, forced):  # noqa: F811
    assert choose(device, half, small, False) == kernel
    for backend in ("dense", "merged", "flex"):
        forced(backend)
        assert choose(device, half, small, False) == backend


def test_half_precision_alone_is_merged_on_cuda(forced):  # noqa: F811
    queries = SimpleNamespace(device=CUDA, dtype=torch.bfloat16)
    assert attention._unmasked(queries) == "dense", "with gradient there are many queries"
    with torch.no_grad():
        assert attention._unmasked(queries) == "merged"
        assert attention._unmasked(SimpleNamespace(device=CUDA, dtype=torch.float32)) == "dense"
        assert attention._unmasked(SimpleNamespace(device=CPU, dtype=torch.bfloat16)) == "dense"
    forced("merged")
    with pytest.raises(ValueError, match="merged computes in bfloat16 .* torch.float32"):
        attention._unmasked(SimpleNamespace(device=CUDA, dtype=torch.float32))


def test_unusable_kernels_are_refused(monkeypatch):
    monkeypatch.setattr(attention, "flash_missing", lambda: "flash-attn is not installed")
    for backend, device, reason in [
        ("sage", CPU, "'sage' is none of auto, measured, dense, merged, flex, flash"),
        ("flex", CPU, "no gradient on a CPU"),
        ("flash", CPU, "runs on CUDA only"),
        ("flash", CUDA, "flash-attn is not installed"),
        ("measured", CPU, "a run on a CPU repeats itself bit for bit"),
    ]:
        with pytest.raises(ValueError, match=rf"launch\.attention: .*{reason}"):
            use(backend, device)
    assert attention._forced == "auto"


def test_a_flash_attn_that_does_not_load_is_passed_over(tmp_path, monkeypatch, caplog):
    """One that was built for another torch is found, but its import ends with an ImportError."""
    (tmp_path / "flash_attn").mkdir()
    broken = "raise ImportError('undefined symbol: _ZN3c105Error')"
    (tmp_path / "flash_attn" / "__init__.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    attention.flash_missing.cache_clear()
    try:
        for _ in range(2):
            assert attention.flash_missing()
        assert len(caplog.records) == 1 and "undefined symbol: _ZN3c105Error" in caplog.text
        with pytest.raises(ValueError, match=r"flash cannot run here: .*undefined symbol.*auto"):
            use("flash", CUDA)
    finally:
        attention.flash_missing.cache_clear()


def test_the_choice_is_said_once_a_run(caplog):
    use("auto", CPU)
    with caplog.at_level("INFO"):
        for _ in range(3):
            attend(
                *heads(6, 6),
                attention_mask(MATRICES["frame by frame"][:2, :2], 3, 0, CPU, torch.float),
            )
    assert [r.message for r in caplog.records] == ["attention: dense where frames are hidden (cpu)"]
