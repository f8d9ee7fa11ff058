"""The effect size of bugs in published code, where the exact solution is known.

Each is switched on in a call of the exact network or of the exact flow map, with the published
numbers: a 48-interval grid of shift 5, a table of 1,000 noise levels. Exceptions are `guidance`,
whose 48 intervals have the world's shift, and `mixed_shift`, about four stored states. Sizes are
RMSE of a frame, to be read beside the law's own noise, but for guidance, which moves a
distribution. (CD without its last pair is a fact of the objective: `worlds/closed_form/facts.py`.)
"""

import numpy as np
import torch
from torch import Tensor

from experiments.metrics.registry import Measurement, NotApplicable
from experiments.metrics.statistics import resample_weights, spread_interval
from experiments.worlds.closed_form.context import Clips, View, root_mean_square
from experiments.worlds.closed_form.distances import energy_distance
from experiments.worlds.closed_form.facts import CLIPS
from lightning_modules.diffusion.flow import add_noise, euler, time_grid
from lightning_modules.diffusion.rollout import Past, Solve

INTERVALS, SHIFT, TABLE = 48, 5.0, 1000
OTHER_SHIFT = 8.0  # of Self Forcing's script for trajectories, read with shift 5
ACCIDENT = 0.00498  # the noise that the table holds for t = 0
CONTEXT = 0.1  # a context noise that is declared and not added
LEVELS = 12  # of a grid that the flow map is asked at
GUIDED = 1024


def _grid() -> Tensor:
    return time_grid(INTERVALS, SHIFT).float()


def _bf16(t: Tensor) -> Tensor:
    """Times as the published code holds them: 1000 t in bf16."""
    return (t * TABLE).bfloat16().float() / TABLE


def _nearest(t: Tensor) -> Tensor:
    """The nearest noise level of the table, which has no 0."""
    table = time_grid(TABLE, SHIFT)[:-1].float()
    return table[(t[:, None] - table).abs().argmin(dim=1)]


def _told(view: View, true: Tensor, told: Tensor) -> Measurement:
    """RMSE of the exact flow map from frames at `true` times, told that they are at `told` ones."""
    clips = view.draw(CLIPS, "told")
    noise = view.noise(clips.latents, "told/noise")
    sizes = []
    every = max(1, len(true) // LEVELS)
    for lies, said in zip(true[::every], told[::every], strict=True):
        level = lies.expand(noise.shape[:2])
        x_t = add_noise(clips.latents, noise, level)
        right, wrong = (view.flow_map(x_t, t.expand(noise.shape[:2]), clips) for t in (lies, said))
        sizes.append(root_mean_square(wrong - right))
    largest = float((told - true).abs().max())
    return Measurement(
        float(np.sqrt(np.mean(np.square(sizes)))),
        CLIPS,
        extra={"largest_time_error": largest, "largest": max(sizes)},
        curves={"times": true[::every].tolist(), "by_time": sizes},
    )


def bf16_time(view: View) -> Measurement:
    """Frames of the 48-interval grid, times rounded to bf16 (998.39 is read as 1000)."""
    times = _grid()[:-1]
    return _told(view, times, _bf16(times))


def bf16_step(view: View) -> Measurement:
    """One Euler step of CD from the right x_t, its length the difference of two rounded times:
    RMSE of x_t' over the RMSE length of the step.
    """
    clips, grid = view.draw(CLIPS, "step"), _grid()
    noise, rounded = view.noise(clips.latents, "step/noise"), _bf16(_grid())
    v = view.beside_past(view.network, clips)
    wrong, length = [], []
    for index in range(INTERVALS):
        level, told, ahead, told_ahead = (
            t.expand(noise.shape[:2])
            for t in (grid[index], rounded[index], grid[index + 1], rounded[index + 1])
        )
        x_t = add_noise(clips.latents, noise, level)
        right, bug = euler(v, x_t, level, ahead), euler(v, x_t, told, told_ahead)
        wrong.append(root_mean_square(bug - right))
        length.append(root_mean_square(right - x_t))
    ratio = rounded.diff() / grid.diff()
    return Measurement(
        float(np.sqrt(np.mean(np.square(wrong)) / np.mean(np.square(length)))),
        CLIPS,
        extra={
            "shortest": float(ratio.min()),
            "longest": float(ratio.max()),
            "off_by_a_tenth": float(((ratio - 1).abs() > 0.1).sum()),
        },
    )


def nearest_sigma(view: View) -> Measurement:
    """Frames noised to the table's nearest level, told the time that was asked for."""
    times = _grid()[:-1]
    return _told(view, _nearest(times), times)


def mixed_shift(view: View) -> Measurement:
    """The four stored states of a trajectory of shift 8, told the times of shift 5."""
    return _told(view, *(time_grid(4, by)[:-1].float() for by in (OTHER_SHIFT, SHIFT)))


def noisy_commit(view: View) -> Measurement:
    """The next frame beside a past committed with noise 0.005 and declared clean."""
    return _beside(view, added=ACCIDENT, declared=0.0)


def undone_context_noise(view: View) -> Measurement:
    """The next frame beside a clean past declared to be at 0.1."""
    return _beside(view, added=0.0, declared=CONTEXT)


def guidance(view: View) -> Measurement:
    """Energy distance between first frames guided by 4 and by 3 towards the first component.

    ``c + 3 (c - u)`` is scale 4 of ``u + w (c - u)``. Also each one's distance to the component
    itself, and how far its frames lie past it.
    """
    if view.law.components == 1:
        raise NotApplicable("the law has one component, so prompts say nothing")
    real = view.draw(GUIDED * view.law.components, "guided/law")
    target = real.vectors[real.component == 0, 0].numpy()
    frames = {scale: _guided(view, scale) for scale in (1.0, 3.0, 4.0)}
    weights = resample_weights(GUIDED, 100, view.seed)
    value, drawn = energy_distance(frames[4.0], frames[3.0], weights)
    extra = {}
    for scale, drawn_frames in frames.items():
        name = f"{scale:.0f}"
        extra[f"to_component_at_{name}"] = energy_distance(drawn_frames, target, weights)[0]
        extra[f"beyond_at_{name}"] = _beyond(drawn_frames, np.array(view.law.means))
    return Measurement(value, GUIDED, spread_interval(value, drawn), extra=extra)


def _guided(view: View, scale: float) -> np.ndarray:
    """First frames guided towards component 0 from noise of the scale's own, float [N, d]."""
    blank = view.draw(GUIDED, "guided")
    noise = view.noise(blank.latents, f"guided/{scale}")[:, :1]
    prompt = torch.zeros_like(blank.text)
    prompt[:, 0, 0] = 1
    past = Past(view.network, prompt, torch.zeros_like(prompt[0]), scale)
    grid = time_grid(INTERVALS, view.shift)
    end = Solve(grid)(past, noise, slice(0, 1), 0)
    return end.flatten(1).double().numpy()


def _beyond(frames: np.ndarray, means: np.ndarray) -> float:
    """How far frames lie past component 0, away from the mean of all, relative to its distance."""
    centre = means.mean(axis=0)
    away = means[0] - centre
    return float(((frames - centre) @ away).mean() / (away @ away))


def _beside(view: View, added: float, declared: float) -> Measurement:
    """RMSE that a wrongly declared past makes in the end of the last frame's ODE."""
    clips = view.draw(CLIPS, "beside")
    noise = view.noise(clips.latents, "beside/noise")
    context = view.noise(clips.latents, "beside/context")
    shown = add_noise(clips.latents, context, torch.full(noise.shape[:2], added))
    right, wrong = (_last_end(view, past, t, noise) for past, t in (
        (clips, 0.0), (Clips(shown, clips.text), declared)
    ))  # fmt: skip
    return Measurement(root_mean_square(wrong - right), CLIPS, extra={"noise": view.law.noise})


@torch.no_grad()
def _last_end(view: View, clips: Clips, declared: float, noise: Tensor) -> Tensor:
    """The end of the last frame's ODE beside a past that is declared to be at a noise level."""
    past, last = Past(view.network, clips.text), len(view.sizes) - 1
    for index in range(last):
        frame = clips.latents[:, index : index + 1]
        past.write(frame, torch.full(frame.shape[:2], declared), slice(index, index + 1))
    grid = time_grid(INTERVALS, SHIFT)
    return Solve(grid)(past, noise[:, last:], slice(last, last + 1), last)
