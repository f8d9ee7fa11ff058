"""The losses, each a mean over batch, frames and latents in fp32."""

import torch
from torch import Tensor


def regression(prediction: Tensor, target: Tensor) -> Tensor:
    """``mean ||prediction - target||^2``; the target is a constant."""
    return (prediction.float() - target.detach().float()).square().mean()


def per_frame_regression(prediction: Tensor, target: Tensor) -> Tensor:
    """The same per frame: ``[B, F]``, the mean over C, H, W."""
    return (prediction.float() - target.detach().float()).square().mean(dim=(2, 3, 4))


def distribution_matching_gradient(x: Tensor, real_x0: Tensor, fake_x0: Tensor) -> Tensor:
    """``g = (fake - real) / mean|x - real|`` per sample (DMD2 / Self Forcing's normaliser).

    ``x`` is the student's clip, ``real_x0`` and ``fake_x0`` the x0 predictions of real and fake
    score at the noised clip. The normaliser is clamped to 1e-5 *before* dividing, so ``g`` is
    always finite.
    """
    scale = (x - real_x0).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-5)
    return ((fake_x0 - real_x0) / scale).detach()


def distribution_matching(x: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to ``x`` is ``gradient / x.numel()``, exactly.

    The published surrogate ``1/2 mean (x - sg(x - g))^2`` has the same gradient up to the rounding
    of ``x - (x - g)``; its value, ``1/2 mean g^2``, is logged by the stage.
    """
    return (x * gradient.detach()).mean()


def grad_norm(parameters) -> Tensor:
    """The L2 norm of all gradients together (a scalar tensor; zero without gradients)."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
