"""Properties of the law alone, independent of any training: what each objective can achieve.

All are Monte Carlo estimates over clips of the law with fixed seeds, or closed forms; the network
evaluated is the law itself, through the same calls that teachers and students get.
"""

import numpy as np
import torch
from torch import Tensor

from experiments.metrics.registry import Measurement, NotApplicable
from experiments.metrics.statistics import bootstrap_interval
from experiments.worlds.closed_form.context import Clips, View, of_law, root_mean_square
from lightning_modules.diffusion import visibility
from lightning_modules.diffusion.flow import add_noise, euler, time_grid, to_x0, velocity
from lightning_modules.diffusion.rollout import solve

PASTS = 512  # for which something is redrawn
REDRAWN = 2  # enough for an unbiased variance; more contexts reduce the error more than more draws
CLIPS = 256
INTERVALS = (2, 4, 8, 16, 32, 64)
FITTED = 4  # the finest of these give the slope


@of_law("law.injectivity.bidirectional", "Var(x0 | noise of frames <= i), bidirectional ODE")
def bidirectional_injectivity(view: View) -> Measurement:
    """Variance of a frame's end point in the bidirectional ODE due to the noise of *later* frames.

    At t = 1: the noise of the frames up to i is held, that of later ones redrawn. For the first
    frame, which has no context, this is the paper's Var(x0^1 | x_t^1); for the others it is what
    SF-ODE's student, whose context is as noisy as the frame, cannot predict: the irreducible loss
    of its regression. For the last frame, which no frame follows, it is 0.
    """
    clips = view.draw(PASTS, "injectivity").repeated(REDRAWN)

    def ends(held: int) -> Tensor:
        noise = _held(view, clips.latents, held)
        return view.bidirectional_end(noise, clips.text)[:, held - 1]

    return _variance(view, ends)


@of_law("law.injectivity.causal", "Var(x0 | x_t), AR ODE")
def causal_injectivity(view: View) -> Measurement:
    """The same under the AR teacher's ODE: later noise and later real frames are redrawn, the
    frame's noise and its clean context held. The ODE has no other input, so it is 0.
    """
    clips = view.draw(PASTS, "injectivity").repeated(REDRAWN)
    others = view.draw(PASTS * REDRAWN, "injectivity/later").latents

    def ends(held: int) -> Tensor:
        noise = _held(view, clips.latents, held)
        past = torch.cat([clips.latents[:, : held - 1], others[:, held - 1 :]], dim=1)
        return view.causal_end(noise, Clips(past, clips.text))[:, held - 1]

    return _variance(view, ends)


@of_law("law.injectivity.given_past", "Var(x0 | x_t, clean past)")
def injectivity_given_past(view: View) -> Measurement:
    """``Var(x0^i | x_1^i, x0^{<i})`` of the bidirectional ODE as the paper defines it, mean
    over i: analytic, only for a law that is a single Gaussian.

    End points and noise are jointly Gaussian, so the variance is a Schur complement.
    """
    root, by_frame = _ends_of_noise(view), []
    for i in range(len(root)):
        known = np.vstack([root[:i], np.eye(len(root))[i]])
        answer = np.linalg.lstsq(known.T, root[i], rcond=None)[0]
        by_frame.append(float(((root[i] - answer @ known) ** 2).sum()))
    return Measurement(float(np.mean(by_frame)), len(root), curves={"by_frame": by_frame})


@of_law("law.injectivity.given_noise", "Var(x0 | noise of frames <= i)")
def injectivity_given_noise(view: View) -> Measurement:
    """``Var(x0^i | x_1^{<=i})`` of the bidirectional ODE, mean over i: what
    `law.injectivity.bidirectional` estimates, analytic, only for a law that is a single Gaussian.
    """
    by_frame = np.square(np.triu(_ends_of_noise(view), 1)).sum(axis=1).tolist()
    return Measurement(float(np.mean(by_frame)), len(by_frame), curves={"by_frame": by_frame})


def _ends_of_noise(view: View) -> np.ndarray:
    """``S^(1/2)``, S the covariance of the frames of a law of one Gaussian: its row i is what the
    noise of every frame contributes to frame i's end point, float64 [F, F].

    Raises:
        NotApplicable: the law is not a single Gaussian.
    """
    law = view.law
    if law.angle or law.components > 1:
        raise NotApplicable("the law is no single Gaussian, so there is no closed form")
    lags = [[law.decay ** abs(i - j) for j in range(law.frames)] for i in range(law.frames)]
    variances = [law.spread**2]
    for _ in range(1, law.frames):
        variances.append(law.decay**2 * variances[-1] + law.noise**2)
    earlier = np.minimum.outer(np.arange(law.frames), np.arange(law.frames))
    values, vectors = np.linalg.eigh(np.array(lags) * np.array(variances)[earlier])
    return (vectors * np.sqrt(values)) @ vectors.T


def _register_order(solver: str, name: str) -> None:
    @of_law(f"law.order.{solver}", f"order of {name}")
    def _(view: View) -> Measurement:
        """Order of the solver: negative slope of the AR ODE's log error over log intervals."""
        clips = view.draw(CLIPS, "order")
        noise = view.noise(clips.latents, "order/noise")
        exact = view.flow_map(noise, torch.ones(noise.shape[:2]), clips)
        v = view.beside_past(view.network, clips)
        squares = []
        for intervals in INTERVALS:
            grid = time_grid(intervals, view.shift).float()
            end = solve(v, noise, grid, solver=solver)[0].flatten(2).double()
            squares.append((end - exact).square().mean(dim=(1, 2)).numpy())
        per_clip = np.stack(squares, axis=1)  # [N, intervals]
        errors = np.sqrt(per_clip.mean(axis=0))

        def slopes(rows: np.ndarray) -> np.ndarray:
            return _slope(per_clip[rows.astype(int)].mean(axis=1))

        curves = {"intervals": list(INTERVALS), "errors": errors.tolist()}
        value = float(_slope(errors**2))
        interval = bootstrap_interval(np.arange(CLIPS), view.seed, slopes)
        return Measurement(value, CLIPS, interval, curves=curves)


def _slope(mean_squares: np.ndarray) -> np.ndarray:
    """Log-log slope of squared errors `[..., intervals]` over the finest intervals: `[...]`."""
    across = np.log(INTERVALS[-FITTED:]) - np.log(INTERVALS[-FITTED:]).mean()
    heights = np.log(mean_squares[..., -FITTED:]) / 2
    return -(heights @ across) / (across @ across)


_register_order("euler", "Euler")
_register_order("heun", "Heun")


@of_law("law.leak.strict", "least loss beside the past (< i)")
def least_loss(view: View) -> Measurement:
    """Flow-matching loss of the exact velocity under the strict mask: the irreducible loss."""
    return _loss(view, visibility.teacher_forcing_mask(view.sizes))


@of_law("law.leak.own", "least loss with own clean content (<= i)")
def leaking_loss(view: View) -> Measurement:
    """The same under a leaking mask, where a noisy frame sees its own clean copy.

    `to_target` is the RMSE of the x0 prediction ``x_t - t v`` to the frame: the network would copy.
    """
    frames = view.law.frames
    leaking = visibility.teacher_forcing_mask(view.sizes).clone()
    leaking[frames:, :frames] |= torch.eye(frames, dtype=torch.bool)
    return _loss(view, leaking)


def _loss(view: View, visible: Tensor) -> Measurement:
    clips = view.draw(CLIPS, "leak")
    noise, frames = view.noise(clips.latents, "leak/noise"), view.law.frames
    target, losses, gaps = velocity(clips.latents, noise), [], []
    times = view.grid[:-1]
    for t in times:
        level = t.expand(noise.shape[:2])
        x_t = add_noise(clips.latents, noise, level)
        v = view.network(
            torch.cat([clips.latents, x_t], dim=1),
            torch.cat([torch.zeros_like(level), level], dim=1),
            clips.text,
            frames=torch.arange(frames).repeat(2),
            visible=visible,
        )[:, frames:]
        losses.append((v - target).double().square().mean(dim=(1, 2, 3, 4)).numpy())
        gaps.append((to_x0(x_t, v, level) - clips.latents).double().square().mean())
    per_clip = np.mean(losses, axis=0)
    return Measurement(
        float(per_clip.mean()),
        CLIPS,
        bootstrap_interval(per_clip, view.seed),
        extra={"to_target": float(torch.stack(gaps).mean().sqrt())},
        curves={"times": times.tolist(), "by_time": np.mean(losses, axis=1).tolist()},
    )


@of_law("law.bug.no_terminal_pair", "CD without the pair that reaches 0", higher_is_better=False)
def no_terminal_pair(view: View) -> Measurement:
    """RMSE of a fixed point of the CD loss when the terminal pair is left out.

    Fixed points are the chain of teacher steps down to the last grid point but one, followed by
    *any* map. Evaluated is the map of a zero-initialised network (which returns its noisy input);
    `anchored` is the RMSE with the terminal pair: Euler's error only. `loss` is the CD loss of the
    evaluated map over three of the remaining pairs: zero at a fixed point.
    """
    clips = view.draw(CLIPS, "terminal")
    noise = view.noise(clips.latents, "terminal/noise")
    exact = view.flow_map(noise, torch.ones(noise.shape[:2]), clips)
    v = view.beside_past(view.network, clips)
    loose, last = solve(v, noise, view.grid[:-1])[0], view.grid[-2].expand(noise.shape[:2])
    anchored = to_x0(loose, v(loose, last), last)
    pairs = []
    for index in (0, view.intervals // 2, view.intervals - 2):
        t, t_next = (view.grid[i].expand(noise.shape[:2]) for i in (index, index + 1))
        x_t = add_noise(clips.latents, noise, t)
        ahead = euler(v, x_t, t, t_next)
        here, there = (
            solve(v, x, view.grid[start:-1])[0] for x, start in ((x_t, index), (ahead, index + 1))
        )
        pairs.append(root_mean_square(here - there) ** 2)
    return Measurement(
        root_mean_square(loose.flatten(2) - exact),
        CLIPS,
        extra={
            "anchored": root_mean_square(anchored.flatten(2) - exact),
            "loss": float(np.mean(pairs)),
        },
    )


def _held(view: View, like: Tensor, held: int) -> Tensor:
    """Noise whose first frames are the same in every group of redrawn clips."""
    noise = view.noise(like, f"redrawn/{held}")
    groups = noise.unflatten(0, (PASTS, REDRAWN))
    groups[:, :, :held] = view.noise(groups[:, :1, :held], "held")
    return noise


def _variance(view: View, ends) -> Measurement:
    """Mean variance over redrawn clips of `ends(held)` `[PASTS * REDRAWN, C, H, W]`."""
    each = torch.stack(
        [
            ends(held).double().flatten(1).unflatten(0, (PASTS, REDRAWN)).var(dim=1).mean(1)
            for held in range(1, view.law.frames + 1)
        ]
    )  # [F, PASTS]
    per_past = each.mean(0).numpy()
    by_frame = each.mean(1).tolist()
    interval = bootstrap_interval(per_past, view.seed)
    return Measurement(float(per_past.mean()), PASTS, interval, curves={"by_frame": by_frame})
