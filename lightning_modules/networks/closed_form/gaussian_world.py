"""A distribution of clips with closed-form densities: Gaussian frames that rotate left or right.

    x^1     ~ sum_k p_k N(mean_k, spread^2 I)
    x^{i+1} = decay R(s angle) x^i + noise z          s = +1 or -1, each with probability 1/2

With angle 0 and one component this is the AR(1) Gaussian of Causal Forcing's analysis; else a clip
is a finite mixture (components x signs) and a frame given its predecessor one of two Gaussians.

A frame is a vector of d numbers; ``R`` rotates its pairs of neighbours. With the rotations so far
undone, ``u^i = R(-Theta_i) x^i``, the covariance ``cov(u^i, u^j) = c_ij I`` is the same for every
mixture component, and only means are rotated. All tensors here are float64; frames count from 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.networks.closed_form.gaussian_mixture import Mixture
from lightning_modules.ranges import Finite, Positive, PositiveInt

JITTER = 1e-10
"""Variance added to every observation: two clean copies of a frame would make them singular.

Against noise^2 it is far below the precision of float32, the dtype of velocities."""


@dataclass(frozen=True)
class GaussianWorld:
    """The parameters of the law, and its exact densities, velocities and flow maps.

    Args:
        means: of the first frame's components, ``[K, d]``.
        weights: of the components, ``[K]``, positive, summing to 1.
        spread: standard deviation within a component.
        decay: autoregressive coefficient.
        noise: standard deviation of a frame's innovation; ``decay^2 + noise^2 = 1`` and spread 1
            make one component at 0 stationary.
        angle: of a rotation, radians.
        frames: of a clip.

    Raises:
        ValueError: names the parameter that defines no distribution.
    """

    means: tuple[tuple[Finite, ...], ...]
    weights: tuple[Positive, ...]
    spread: Positive
    decay: Finite
    noise: Positive
    angle: Finite
    frames: PositiveInt

    def __post_init__(self) -> None:
        object.__setattr__(self, "means", tuple(map(tuple, self.means)))  # lists from JSON or YAML
        object.__setattr__(self, "weights", tuple(self.weights))
        if len({len(mean) for mean in self.means}) != 1:
            raise ValueError(f"means: {self.means} are not vectors of one size")
        if len(self.weights) != len(self.means) or min(self.weights) <= 0:
            raise ValueError(f"weights: {self.weights} are not a positive one for each mean")
        if abs(sum(self.weights) - 1) > 1e-9:
            raise ValueError(f"weights: {self.weights} do not sum to 1")
        if self.spread <= 0 or self.noise <= 0:
            raise ValueError(
                f"spread/noise: {self.spread}, {self.noise}; both must be positive, or the clips"
                " have no density"
            )
        if self.angle and self.size % 2:
            raise ValueError(f"angle: frames of {self.size} numbers have no pairs; make it even")
        if self.frames < 1:
            raise ValueError(f"frames: {self.frames}; a clip has at least one")

    @property
    def size(self) -> int:
        """d, the dimension of a frame."""
        return len(self.means[0])

    @property
    def components(self) -> int:
        """K, the mixture components of the first frame."""
        return len(self.means)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clips ``[N, F, d]``, their components ``[N]`` int64, their signs ``[N, F - 1]`` int64."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        component = torch.multinomial(weights, count, replacement=True, generator=generator)
        coins = torch.randint(2, (count, self.frames - 1), generator=generator)
        z = torch.randn((count, self.frames, self.size), generator=generator, dtype=torch.float64)
        signs = 2 * coins - 1
        frames = [self._means(z)[component] + self.spread * z[:, 0]]
        for index in range(1, self.frames):
            rotated = rotate(frames[-1], self.angle * signs[:, index - 1].double())
            frames.append(self.decay * rotated + self.noise * z[:, index])
        return torch.stack(frames, dim=1), component, signs

    def conditional(self, clean: Tensor, component: Tensor | None = None) -> Mixture:
        """Each frame's conditional ``p(x^i | x^{i-1})``, and frame 0's marginal.

        Args:
            clean: the true clip ``[N, F, d]``.
            component: of the first frame, ``[N]``; None: any.

        Returns:
            A mixture over ``[N, F]``; missing components have weight 0.
        """
        slots = max(self.components, 2)
        shape = (*clean.shape[:2], slots)
        log_weights = clean.new_full(shape, -math.inf)
        means = clean.new_zeros((*shape, self.size))
        means[:, 0, : self.components] = self._means(clean)
        log_weights[:, 0, : self.components] = self.log_prior(component, clean)
        for slot, sign in enumerate((1, -1)):
            means[:, 1:, slot] = self.decay * rotate(clean[:, :-1], sign * self.angle)
            log_weights[:, 1:, slot] = -math.log(2)
        std = clean.new_full((clean.shape[1],), self.noise)
        std[0] = self.spread
        return Mixture(log_weights, means, std)

    def flow_map(
        self, x_t: Tensor, t: Tensor, clean: Tensor, component: Tensor | None = None
    ) -> Tensor:
        """Endpoint of the AR-conditional probability-flow ODE through ``(x_t, t)``, ``[N, F, d]``.

        Args:
            x_t: noisy frames ``[N, F, d]``, each conditioned on its own *clean* predecessor.
            t: noise levels ``[N, F]``.
            clean, component: as for `conditional`.
        """
        return self.conditional(clean, component).flow_map(x_t, t)

    def log_density(self, clips: Tensor, component: Tensor | None = None) -> Tensor:
        """``log p(x)`` of whole clips ``[N, F, d]``: ``[N]``."""
        return self.conditional(clips, component).log_density(clips).sum(1)

    def components_of(self, clips: Tensor) -> Tensor:
        """Probability of each component given the first frame, ``[N, K]``."""
        first = self.conditional(clips).responsibilities(clips)[:, 0]
        return first[:, : self.components]

    def branches_of(self, clips: Tensor) -> Tensor:
        """Probability that each transition rotated by ``+angle``, ``[N, F - 1]``."""
        return self.conditional(clips).responsibilities(clips)[:, 1:, 0]

    def log_prior(self, component: Tensor | None, like: Tensor) -> Tensor:
        """Log weights of the first frame's components, ``[K]``, or ``[N, K]`` for known ones."""
        prior = torch.tensor(self.weights, dtype=torch.float64, device=like.device).log()
        if component is None:
            return prior
        known = torch.nn.functional.one_hot(component, self.components).bool()
        return torch.zeros_like(prior).masked_fill(~known, -math.inf)

    def velocity(
        self,
        y: Tensor,
        t: Tensor,
        positions: Sequence[int],
        visible: Tensor,
        queries: Sequence[int],
        log_prior: Tensor,
    ) -> Tensor:
        """``E[eps - x0 | visible observations]``: exact, for any attention mask.

        Observation j is ``y_j = (1 - t_j) x^{positions[j]} + t_j eps_j`` with noise of its own; a
        frame may be observed twice. Given the signs and the component all is jointly Gaussian with
        one covariance, so that a query needs one Cholesky factor whatever their number; one that
        sees itself without noise needs none.

        Args:
            y: observations ``[B, M, d]``.
            t: their noise levels ``[B, M]``.
            positions: the frame each observation is of.
            visible: ``[Q, M]`` bool, which observations a query may use.
            queries: the observation whose ``eps`` and ``x0`` each query is about.
            log_prior: of the first frame's components, ``[K]`` or ``[B, K]``.

        Returns:
            ``[B, Q, d]``.

        Raises:
            ValueError: a position outside the clip.
        """
        if min(positions) < 0 or max(positions) >= self.frames:
            raise ValueError(f"frames {list(positions)}: the law's clips have {self.frames}")
        query, visible = torch.tensor(queries, dtype=torch.int64), visible.to(y.device)
        v = -y[:, query]  # a clean observation that sees itself: eps stays unknown
        hidden = ~visible[torch.arange(len(query)), query].cpu() | (t[:, query] != 0).any(0).cpu()
        if hidden.any():
            frame, query = torch.tensor(positions), query[hidden]
            v[:, hidden] = self._posterior(y, t, frame, visible[hidden], query, log_prior)
        return v

    def _posterior(
        self,
        y: Tensor,
        t: Tensor,
        frame: Tensor,
        visible: Tensor,
        query: Tensor,
        log_prior: Tensor,
    ) -> Tensor:
        """`velocity` of observations that do not see their own frame clean, ``[B, Q, d]``."""
        kernel = self._kernel().to(y.device)
        precision = _precision(kernel[frame][:, frame], t, visible)  # [B, Q, M, M]
        last = int(frame.max())
        angles = self.angle * _rotations(last if self.angle else 0, last).to(y)  # [S, P]
        mean = self.decay ** frame.to(y)[:, None] * self._means(y)[:, None]  # [K, M, d], unrotated

        unrotated = rotate(y[:, :, None], -angles[:, frame].T)[:, :, :, None]  # [B, M, S, 1, d]
        expected = (1 - t)[:, :, None, None, None] * mean.movedim(1, 0)[:, None]  # [B, M, 1, K, d]
        residual = unrotated - expected  # [B, M, S, K, d]
        flat = residual.flatten(2)
        solved = (precision.flatten(1, 2) @ flat).view(-1, len(query), *residual.shape[1:])
        distance = (residual[:, None] * solved).sum((2, 5))  # [B, Q, S, K]
        logits = log_prior.to(y).expand(len(y), -1)[:, None, None] - distance / 2
        belief = logits.flatten(2).softmax(-1).view_as(logits)

        # eps - x0 is linear in the residual: t_j eps_j gives t_j, (1 - t_j) x^j its covariance.
        own = torch.nn.functional.one_hot(query, len(frame)).to(y)  # [Q, M]
        gain = t[:, None] * own - (1 - t)[:, None] * kernel[frame[query]][:, frame]  # [B, Q, M]
        weight = (gain[:, :, None] @ precision)[:, :, 0]  # [B, Q, M]
        v = (weight @ flat).view(-1, len(query), *residual.shape[2:])
        v = v - mean[:, query].movedim(1, 0)[:, None]
        return rotate(torch.einsum("bqsk,bqskd->bqsd", belief, v), angles[:, frame[query]].T).sum(2)

    def _kernel(self) -> Tensor:
        """``c_ij``, ``[F, F]``: covariance of frames with their rotations undone."""
        variances = [self.spread**2]
        for _ in range(1, self.frames):
            variances.append(self.decay**2 * variances[-1] + self.noise**2)
        frame = torch.arange(self.frames)
        earlier = torch.minimum(frame[:, None], frame)
        apart = (frame[:, None] - frame).abs()
        return self.decay ** apart.double() * torch.tensor(variances, dtype=torch.float64)[earlier]

    def _means(self, like: Tensor) -> Tensor:
        return torch.tensor(self.means, dtype=torch.float64, device=like.device)


def rotate(x: Tensor, angle: Tensor | float) -> Tensor:
    """Rotate each pair of numbers of ``x`` ``[..., d]`` by ``angle`` (radians, ``[...]``)."""
    if x.shape[-1] % 2:
        return x.expand(torch.broadcast_shapes(x.shape, (*torch.as_tensor(angle).shape, 1)))
    angle = torch.as_tensor(angle, dtype=x.dtype, device=x.device)[..., None]
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos * first - sin * second, sin * first + cos * second), -1).flatten(-2)


def _rotations(coins: int, last: int) -> Tensor:
    """Rotations before each frame, under all outcomes of the first ``coins`` signs.

    Returns:
        ``[2^coins, last + 1]`` float64; 0 for the first frame.
    """
    outcomes = torch.arange(2**coins)[:, None] >> torch.arange(coins) & 1
    rotations = torch.zeros(len(outcomes), last + 1, dtype=torch.float64)
    rotations[:, 1 : coins + 1] = (2.0 * outcomes - 1).cumsum(1)
    return rotations


def _precision(kernel: Tensor, t: Tensor, visible: Tensor) -> Tensor:
    """Inverse covariance of each query's observations, zero where it sees nothing.

    Args:
        kernel: covariance of the frames that are observed, ``[M, M]``.
        t: ``[B, M]``.
        visible: ``[Q, M]`` bool.

    Returns:
        ``[B, Q, M, M]``.
    """
    keep = 1 - t
    covariance = keep[:, :, None] * keep[:, None] * kernel + torch.diag_embed(t.square() + JITTER)
    both = visible[:, :, None] & visible[:, None]
    hidden = torch.diag_embed((~visible).to(t))
    factor = torch.linalg.cholesky(covariance[:, None] * both + hidden)
    return torch.cholesky_inverse(factor) * both
