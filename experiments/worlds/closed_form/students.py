"""Error of a student against the exact flow map, and the residuals of ODE regression.

A student predicts `G(x_t, t) = x_t - t v(x_t, t | clean context)`. Regressing a bidirectional
teacher's ODE has an irreducible residual from the noise of frames that a causal student cannot see
(`facts` has its lower bound); regressing the AR teacher's has none.
"""

import numpy as np
import torch
from torch import Tensor

from experiments.metrics.registry import Measurement
from experiments.metrics.statistics import bootstrap_interval
from experiments.worlds.closed_form.context import View, of_student
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import add_noise, to_x0

TIMES = 8  # noise levels evaluated, evenly spaced over the grid


@of_student("law.flow_map", "RMSE to the exact flow map")
def flow_map(view: View) -> Measurement:
    """RMSE over held-out clips at the grid's noise levels, given clean context."""
    times = view.grid[:-1][:: max(1, view.intervals // TIMES)]
    noise = view.even_noise(view.reference.latents, "flow_map")
    squares = torch.stack([_flow_map_squares(view, noise, t) for t in times])  # [T, N, F]
    per_clip = squares.mean(dim=(0, 2)).numpy()
    low, high = np.sqrt(bootstrap_interval(per_clip, view.seed))
    return Measurement(
        float(np.sqrt(per_clip.mean())),
        len(per_clip),
        (float(low), float(high)),
        extra={"from_noise": float(squares[0].mean().sqrt())},
        curves={
            "times": times.tolist(),
            "by_time": squares.mean(dim=(1, 2)).sqrt().tolist(),
            "by_frame": squares.mean(dim=(0, 1)).sqrt().tolist(),
        },
    )


@of_student("law.residual.causal", "residual, AR teacher's ODE")
def causal_residual(view: View) -> Measurement:
    """Mean squared error of the one-step prediction from pure noise, given clean context, to the
    end point of the AR teacher's ODE from that noise.
    """
    clips, noise = view.reference, view.even_noise(view.reference.latents, "residual")
    v = view.beside_past(view.student, clips)(noise, torch.ones(()))
    exact = view.flow_map(noise, torch.ones(noise.shape[:2]), clips)
    return _residual((noise - v).flatten(2), exact, view.seed)


@of_student("law.residual.bidirectional", "residual, bidirectional ODE")
def bidirectional_residual(view: View) -> Measurement:
    """The same of the bidirectional teacher's ODE, with SF-ODE's context: as noisy as the frame."""
    clips, noise = view.reference, view.even_noise(view.reference.latents, "residual")
    level = torch.ones(noise.shape[:2])
    v = forcing.diffusion_forcing(view.student, noise, level, clips.text, view.sizes)
    end = view.bidirectional_end(noise, clips.text)
    return _residual((noise - v).flatten(2), end.flatten(2), view.seed)


def _flow_map_squares(view: View, noise: Tensor, t: Tensor) -> Tensor:
    """Squared error at one noise level, mean over the values of a frame, `[N, F]`."""
    clips = view.reference
    level = t.expand(noise.shape[:2])
    x_t = add_noise(clips.latents, noise, level)
    answer = to_x0(x_t, view.beside_past(view.student, clips)(x_t, t), level)
    exact = view.flow_map(x_t, level, clips)
    return (answer.flatten(2) - exact).square().mean(2)


def _residual(answer: Tensor, end: Tensor, seed: int) -> Measurement:
    """Also `variance`: of predictions relative to end points; below 1 for a regressed mean."""
    squares = (answer - end).double().square().mean(2)  # [N, F]
    per_clip = squares.mean(1).numpy()
    kept = answer.double().var(0).sum() / end.double().var(0).sum()
    return Measurement(
        float(per_clip.mean()),
        len(per_clip),
        bootstrap_interval(per_clip, seed),
        extra={"variance": float(kept)},
        curves={"by_frame": squares.mean(0).tolist()},
    )
