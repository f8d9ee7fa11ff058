"""flash-attn, where it is installed: never required."""

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

from torch import Tensor

log = logging.getLogger(__name__)


@cache
def flash_missing() -> str | None:
    """Why flash-attn cannot be used, logged once; None if it can, and it is imported."""
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:
        reason = f"flash-attn does not load ({error}): probably it was built for another torch"
        log.warning("attention: %s", reason)
        return reason
    return None


@cache
def flash_kernel() -> Callable[..., Tensor]:
    """It takes q, k, v [B, T, H, E]."""
    from flash_attn import flash_attn_func

    return flash_attn_func
