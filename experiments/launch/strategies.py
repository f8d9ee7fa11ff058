"""The distributed strategy of a fit: ``launch.strategy``."""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy

from experiments.launch.hardware import Launch
from experiments.runs.config import nearest
from lightning_modules import ALONE
from lightning_modules.networks.wan.tangent_attention import missing

STRATEGIES = {
    "auto": "one device, or ddp on several",
    "ddp": "every device holds everything",
    "deepspeed": "ZeRO: launch.zero_stage 1, 2 or 3",
}


def check_strategy(launch: Launch, precision: str) -> None:
    """Refuse what cannot work together.

    Raises:
        ValueError: names the key and what would work.
    """
    if launch.strategy == "fsdp2":
        raise ValueError(
            "launch.strategy: fsdp2 is not supported: exact alternating updates of two networks"
            " are tested for ddp and deepspeed only; deepspeed with launch.zero_stage=3 shards as"
            " much"
        )
    if launch.strategy not in STRATEGIES:
        known = "; ".join(f"{name} ({what})" for name, what in STRATEGIES.items())
        raise ValueError(
            f"launch.strategy: there is no {launch.strategy!r}"
            f"{nearest(launch.strategy, STRATEGIES)} (there are: {known})"
        )
    if launch.strategy == "deepspeed" and precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"fit.precision: {precision} casts weights under deepspeed; use 32-true, or bf16-mixed,"
            " which computes in bfloat16 and keeps weights, gradients and averages in float32"
        )


def check_forward_mode(stage: LightningModule, launch: Launch) -> None:
    """Refuse to differentiate in forward mode through what has no forward derivative.

    Raises:
        ValueError: names the stage's setting and what can give it.
    """
    setting = getattr(stage, "forward_mode", "")
    if not setting:
        return
    if launch.strategy == "deepspeed" and launch.zero_stage == 3:
        raise ValueError(
            f"{setting}: exact cannot pass the hooks of launch.zero_stage=3; set it to"
            " upwind or central, or launch.zero_stage=2"
        )
    cuda = launch.accelerator != "cpu" and torch.cuda.is_available()
    if cuda and (reason := missing("cuda")):
        raise ValueError(
            f"{setting}: exact cannot run here: {reason}; set it to upwind or central, or pip"
            " install -c constraints.txt triton"
        )


def launch_for(kind: type[LightningModule], launch: Launch) -> Launch:
    """The launch of this stage: stages in ``ALONE`` train on one device."""
    if kind.__name__ not in ALONE:
        return launch
    return replace(launch, nodes=1, devices=1, strategy="auto")


def parallel(module: LightningModule, launch: Launch, precision: str) -> dict[str, Any]:
    """The Trainer's ``strategy`` and ``precision``.

    The ranks are running and know their topology (``Topology.environment``); it starts none.
    """
    timeout = timedelta(seconds=launch.timeout_s)
    if launch.strategy == "deepspeed":
        if launch.accelerator == "cpu" or not torch.cuda.is_available():
            _deepspeed_on_cpu()
        from experiments.launch.deepspeed_strategy import ZeroStrategy

        zero = ZeroStrategy(launch.zero_stage, autocast=precision == "bf16-mixed", timeout=timeout)
        return {"strategy": zero, "precision": "32-true"}
    if launch.strategy == "auto" and launch.world == 1:
        return {"strategy": "auto", "precision": precision}
    several = len(module.parameter_groups()) > 1  # inactive ones get no gradient
    ddp = DDPStrategy(find_unused_parameters=several, timeout=timeout)
    return {"strategy": ddp, "precision": precision}


def resumable(last: Path, launch: Launch) -> Path | None:
    """The checkpoint to resume from, if there is one.

    Raises:
        ValueError: it was written under a strategy with another checkpoint format.
    """
    if not last.exists():
        return None
    if last.is_dir() != (launch.strategy == "deepspeed"):
        kind = "deepspeed" if last.is_dir() else "auto or ddp"
        raise ValueError(
            f"{last}: written under launch.strategy={kind}, this run has {launch.strategy}; resume"
            " with the former, or delete it to start this run again"
        )
    return last


def _deepspeed_on_cpu() -> None:
    """Set up DeepSpeed on CPUs, without its shared-memory collective, which is for inference only
    and takes a minute to compile at first use.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
