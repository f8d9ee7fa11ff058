"""``score`` of speed: few-step generation by a network of the sizes of ``needs.timed``.

The protocol is that of the papers' tables (`rollout.py`): batch 1, without the VAE. Weights are
random, because speed does not depend on their values. The numbers are this machine's: what else
runs on it while they are taken makes them worse.
"""

from dataclasses import asdict, dataclass
from typing import Any

from experiments.bench import device as devices
from experiments.bench.clock import Protocol, measure, quantiles
from experiments.bench.random_models import Subject
from experiments.bench.rollout import Rollout
from experiments.checkpoints.networks import network_section
from experiments.generation.generation import check_precision
from experiments.launch.hardware import accelerated, launch_of, prepare
from experiments.metrics import records, registry
from experiments.metrics.registry import Measurement, metric, selected
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from lightning_modules.diffusion.visibility import partition
from lightning_modules.ranges import (
    Blocks,
    ClipShape,
    NonNegativeInt,
    Positive,
    PositiveInt,
    SolverSteps,
)


@dataclass(frozen=True)
class Speed:
    """The section ``score`` of such a recipe.

    Args:
        clip_shape: ``[F, C, H, W]`` of the clips.
        blocks: frames per block.
        shift: timestep shift.
        precision: of the network.
        few_steps: of every block but the first, which has four.
        warmup: clips before the clock runs.
        repeats: clips with the clock; the median counts.
        bench: sizes of the text encoder and the VAE, of the scale.
    """

    clip_shape: ClipShape
    blocks: Blocks
    shift: Positive
    precision: str
    few_steps: SolverSteps
    warmup: NonNegativeInt
    repeats: PositiveInt
    bench: dict[str, Any]

    def __post_init__(self) -> None:
        check_precision(self.precision, "score")
        partition(self.blocks, self.clip_shape[0])


@dataclass(frozen=True)
class Timed:
    """Timed clips: seconds of their parts (`Rollout.generate`), and pixel frames of each."""

    clips: list[dict[str, Any]]
    frames: int


@metric("speed.throughput", "throughput", "set", "frames/s", True, ("timed",), "exact")
def throughput(timed: Timed) -> Measurement:
    """Pixel frames over text encoding and all passes and KV-cache updates, median over clips."""
    return _median(
        [
            timed.frames / (clip["text_s"] + clip["past_s"] + clip["denoise_s"])
            for clip in timed.clips
        ]
    )


@metric("speed.latency", "first-frame latency", "set", "s", False, ("timed",), "exact")
def latency(timed: Timed) -> Measurement:
    """The denoising passes of the first block, median over clips."""
    return _median([clip["first_block_s"] for clip in timed.clips])


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    _settings(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Time ``needs.timed`` on the device of the recipe's launch."""
    settings, device, launch = _settings(recipe), prepare(recipe), launch_of(recipe)
    tree = asdict(settings) | {"network": network_section(folder.need("timed"))}
    subject = Subject(tree, device)
    student = accelerated(subject.network(tree["network"]), launch, device)
    rollout = Rollout(
        subject, student, subject.text_encoder(), subject.vae(), settings.few_steps, "fused"
    )
    _, clips = measure(rollout.generate, device, Protocol(settings.warmup, settings.repeats))
    found = registry.measure(Timed(clips, subject.pixel_frames()), selected("all", ("timed",)))
    about = {"timed": folder.recipe["needs"]["timed"], "device": devices.describe(device)}
    records.write(folder.path, found, [], {}, about | {"versions": devices.versions()})


def _settings(recipe: dict[str, Any]) -> Speed:
    return Speed(**bind(Speed, recipe.get("score", {}), section="score"))


def _median(values: list[float]) -> Measurement:
    spread = quantiles(values)
    return Measurement(spread.pop("median"), len(values), extra=spread)
