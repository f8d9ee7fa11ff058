"""What sources of videos ask of a clip."""

from typing import Any

from datamodules.curation.decoding import ClipSpec
from datamodules.curation.split import SPLITS
from experiments.runs.signature import bind
from experiments.worlds.wan.encoders import check_dtypes

_GIVEN = {"frames", "fps", "height", "width"}


def check_clips(settings: dict[str, Any]) -> None:
    """Refuse wrong dtypes, a wrong split or a wrong section ``video``, before anything is read."""
    check_dtypes(vae_dtype=settings["vae_dtype"], text_dtype=settings["text_dtype"])
    if settings["split"] not in SPLITS:
        raise ValueError(f"curate.split: {settings['split']!r} is none of {', '.join(SPLITS)}")
    bind(ClipSpec, settings["video"], _GIVEN, "curate.video")


def clip_spec(pixels: tuple[int, int, int], fps: int, video: dict[str, Any]) -> ClipSpec:
    """Of clips with so many frames, rows and columns, from a section ``video``."""
    frames, height, width = pixels
    rest = bind(ClipSpec, video, _GIVEN, "curate.video")
    return ClipSpec(frames=frames, fps=fps, height=height, width=width, **rest)
