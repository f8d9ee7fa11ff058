"""Closed-form worlds for tests, and an independent derivation: one joint Gaussian per outcome.

Nothing here shares a formula with `networks/closed_form/gaussian_world.py` but the law: the
joint of all frames is written down densely for every component and every sequence of signs, and
conditioned on by linear algebra.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from lightning_modules.networks.closed_form.gaussian_world import GaussianWorld
from lightning_modules.networks.closed_form.network import ClosedForm

SWITCHING = GaussianWorld(
    means=((1.2, 0.0), (-0.6, 1.0)), weights=(0.7, 0.3), spread=0.4, decay=0.9, noise=0.3,
    angle=0.6, frames=4,
)  # fmt: skip
"""Branches that overlap, so that no posterior is trivial."""
AR1 = GaussianWorld(
    means=((0.0, 0.0),), weights=(1.0,), spread=1.0, decay=0.8, noise=0.6, angle=0.0, frames=4
)
"""Stationary: decay^2 + noise^2 = 1."""


def network(law: GaussianWorld) -> ClosedForm:
    return ClosedForm.of(law, law.size)


def clips(law: GaussianWorld, count: int, seed: int = 0) -> Tensor:
    """Float64 ``[N, F, d]``."""
    return law.draw(count, torch.Generator().manual_seed(seed))[0]


def batch(law: GaussianWorld, count: int, seed: int = 0) -> dict:
    """Real clips as a stage reads them, unconditional."""
    latents = clips(law, count, seed).float()[..., None, None]
    keys = [f"clip-{seed}-{number}" for number in range(count)]
    return {"key": keys, "latents": latents, "text": torch.zeros(count, 1, law.components)}


def outcomes(law: GaussianWorld):
    """Every (component, signs): its probability, and mean and covariance of all F d numbers."""
    size, frames = law.size, law.frames
    for component, signs in itertools.product(
        range(law.components), itertools.product((1, -1), repeat=frames - 1)
    ):
        maps = [np.eye(size)]  # of the first frame into each
        for sign in signs:
            c, s = math.cos(sign * law.angle), math.sin(sign * law.angle)
            maps.append(law.decay * np.array([[c, -s], [s, c]]) @ maps[-1])
        mean = np.concatenate([m @ np.array(law.means[component]) for m in maps])
        # Each innovation travels on through the later maps: map(i <- j) = maps[i] maps[j]^-1.
        travel = np.zeros((frames * size, frames * size))
        for i, j in itertools.product(range(frames), repeat=2):
            if i >= j:
                width = law.spread if j == 0 else law.noise
                block = width * maps[i] @ np.linalg.inv(maps[j])
                travel[i * size : (i + 1) * size, j * size : (j + 1) * size] = block
        probability = law.weights[component] / 2 ** (frames - 1)
        yield component, probability, mean, travel @ travel.T


def posterior_velocity(
    law: GaussianWorld, y: Tensor, t: Tensor, places: list[int], seen: list[int], asked: int,
    component: int | None = None,
) -> Tensor:  # fmt: skip
    """``E[eps - x0]`` of observation ``asked`` of one sample given the observations ``seen``.

    The variables are all frames and the noise of all observations, ``[F d + M d]``.
    """
    y, t, size, frames = y.double().numpy(), t.double().numpy(), law.size, law.frames
    count = len(places)
    pick = np.zeros((len(seen) * size, (frames + count) * size))
    for row, j in enumerate(seen):
        for number in range(size):
            pick[row * size + number, places[j] * size + number] = 1 - t[j]
            pick[row * size + number, (frames + j) * size + number] = t[j]
    want = np.zeros((size, (frames + count) * size))
    for number in range(size):
        want[number, (frames + asked) * size + number] = 1
        want[number, places[asked] * size + number] = -1
    observed, logs, answers = y[seen].reshape(-1), [], []
    for which, probability, mean, covariance in outcomes(law):
        if component not in (None, which):
            continue
        centre = np.concatenate([mean, np.zeros(count * size)])
        spread = np.eye(len(centre))
        spread[: frames * size, : frames * size] = covariance
        inner = pick @ spread @ pick.T
        residual = observed - pick @ centre
        solved = np.linalg.solve(inner, residual)
        answers.append(want @ (centre + spread @ pick.T @ solved))
        logs.append(math.log(probability) - residual @ solved / 2 - np.linalg.slogdet(inner)[1] / 2)
    weights = np.exp(np.array(logs) - max(logs))
    return torch.from_numpy((weights[:, None] * np.array(answers)).sum(0) / weights.sum())


def log_density_of_noised(law: GaussianWorld, y: Tensor, t: Tensor) -> Tensor:
    """``log p(y)`` of one whole clip ``[F, d]``, frame i noised to ``t[i]``; differentiable."""
    logs = []
    scale = (1 - t).repeat_interleave(law.size)
    for _, probability, mean, covariance in outcomes(law):
        inner = scale[:, None] * torch.from_numpy(covariance) * scale
        inner = inner + torch.diag(t.square().repeat_interleave(law.size))
        normal = torch.distributions.MultivariateNormal(scale * torch.from_numpy(mean), inner)
        logs.append(math.log(probability) + normal.log_prob(y.flatten()))
    return torch.stack(logs).logsumexp(0)
