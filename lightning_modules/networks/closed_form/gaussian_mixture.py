"""Mixtures of Gaussians with a shared width: exact density, velocity and flow map.

With ``d(t)^2 = (1 - t)^2 q^2 + t^2``, ``z = x_t / d`` and ``tau = (1 - t) q / d`` the path
``x_t = (1 - t) x0 + t eps`` becomes ``z = tau x0 / q + sqrt(1 - tau^2) eps``, whose
probability-flow ODE is

    dz / dtau = sum_c w_c(z, tau) mu_c / q,     w_c ~ p_c N(z; tau mu_c / q, 1)

bounded and smooth from noise (tau = 0) to data (tau = 1). With one component it is solved by a
straight line: ``x0 = mu + q (x_t - (1 - t) mu) / d``.
"""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """One mixture for every frame of every clip.

    Args:
        log_weights: ``[N, F, S]``; -inf for a missing component.
        means: ``[N, F, S, d]``.
        std: q, shared by a frame's components, ``[F]``.
    """

    log_weights: Tensor
    means: Tensor
    std: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """``log p(x)`` of ``x`` ``[N, F, d]``: ``[N, F]``."""
        size = x.shape[-1]
        volume = size * (self.std.log() + math.log(2 * math.pi) / 2)
        return self._joint(x, x.new_zeros(x.shape[:2])).logsumexp(-1) - volume

    def responsibilities(self, x: Tensor) -> Tensor:
        """Probability of each component given ``x`` ``[N, F, d]``: ``[N, F, S]``."""
        return self._joint(x, x.new_zeros(x.shape[:2])).softmax(-1)

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``E[eps - x0 | x_t]``, ``[N, F, d]``, for noise levels ``t`` ``[N, F]``."""
        belief = self._joint(x_t, t).softmax(-1)
        keep, level = (1 - t)[..., None, None], t[..., None, None]
        q2 = self.std[:, None, None].square()
        gain = (level - keep * q2) / (keep**2 * q2 + level**2)
        each = gain * (x_t[:, :, None] - keep * self.means) - self.means
        return (belief[..., None] * each).sum(2)

    def flow_map(self, x_t: Tensor, t: Tensor, steps: int = 256) -> Tensor:
        """Endpoint of the probability-flow ODE through ``x_t`` ``[N, F, d]`` at ``t`` ``[N, F]``.

        Runge-Kutta of fourth order in ``tau``; with one component exact whatever ``steps``.
        """
        keep, level = (1 - t)[..., None], t[..., None]
        q = self.std[:, None]
        width = (keep**2 * q**2 + level**2).sqrt()
        z, tau = x_t / width, keep * q / width
        step = (1 - tau) / steps
        for _ in range(steps):
            first = self._drift(z, tau)
            second = self._drift(z + step / 2 * first, tau + step / 2)
            third = self._drift(z + step / 2 * second, tau + step / 2)
            fourth = self._drift(z + step * third, tau + step)
            z = z + step / 6 * (first + 2 * second + 2 * third + fourth)
            tau = tau + step
        return q * z

    def _drift(self, z: Tensor, tau: Tensor) -> Tensor:
        """``sum_c w_c mu_c / q`` at ``z`` ``[N, F, d]``, ``tau`` ``[N, F, 1]``."""
        centres = self.means / self.std[:, None, None]
        distance = (z[:, :, None] - tau[:, :, None] * centres).square().sum(-1)
        belief = (self.log_weights - distance / 2).softmax(-1)
        return (belief[..., None] * centres).sum(2)

    def _joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``log p_c N(x_t; (1 - t) mu_c, d(t)^2)`` without the volume, ``[N, F, S]``."""
        keep = (1 - t)[..., None]
        variance = keep**2 * self.std[:, None].square() + t[..., None] ** 2
        distance = (x_t[:, :, None] - keep[..., None] * self.means).square().sum(-1)
        return self.log_weights - distance / (2 * variance)
