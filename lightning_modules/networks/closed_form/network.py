"""A network without weights whose velocity is exact: the posterior mean of a `GaussianWorld`.

It keeps the contract of `networks/__init__.py`, so it stands wherever a trained network does: as
an AR teacher conditioned on clean context, as a diffusion-forced or bidirectional score, with a KV
cache. It conditions on the frames of the call and the cache, each at its own noise level.

The text [B, 1, K] is the one-hot component of the first frame; zeros leave it open, which gives
guidance its unconditional branch.
"""

import os
from dataclasses import asdict, fields
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from lightning_modules.networks.closed_form.gaussian_world import GaussianWorld
from lightning_modules.networks.wan.kv_cache import KVCache
from lightning_modules.networks.wan.shapes import first_predicted
from lightning_modules.ranges import PositiveInt

__all__ = ["ClosedForm"]


class ClosedForm(nn.Module, ConfigMixin):
    """The exact velocity of a world's clips, under the contract of `networks/__init__.py`.

    Outputs are float32, computed in float64. Latents may have any channels, height and width that
    hold the law's vectors.

    Args:
        law: the parameters of `GaussianWorld`.
        in_channels: of the latents; divides the size of the law's vectors.
        out_channels: the same.
        text_dim: the law's components.

    Raises:
        ValueError: parameters that define no law, or sizes other than the law's.
    """

    config_name = "config.json"
    has_weights = False

    @register_to_config
    def __init__(
        self,
        law: dict[str, Any],
        in_channels: PositiveInt,
        out_channels: PositiveInt,
        text_dim: PositiveInt,
    ) -> None:
        super().__init__()
        self.law = GaussianWorld(**law)
        if self.law.size % in_channels or out_channels != in_channels:
            raise ValueError(
                f"in_channels {in_channels}, out_channels {out_channels}: must be equal and divide"
                f" the {self.law.size} numbers of the law's frames"
            )
        if text_dim != self.law.components:
            raise ValueError(
                f"text_dim {text_dim}: the text is one-hot over {self.law.components} components"
            )

    @classmethod
    def of(cls, law: GaussianWorld, channels: int) -> Self:
        """The network of a law whose latents have `channels`."""
        return cls(asdict(law), channels, channels, law.components)

    def new_cache(self, frames: int | None = None) -> KVCache:
        """Return an empty cache for one rollout of one batch; keys are frames, values their t."""
        return KVCache(layers=1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        *,
        frames: Tensor,
        visible: Tensor | None = None,
        cache: KVCache | None = None,
        write_cache: bool = False,
        predicted: int | None = None,
    ) -> Tensor:
        """Return the velocity eps - x0 [B, P, C, H, W] float32; see `networks/__init__.py`.

        Raises:
            ValueError: shapes that disagree with each other, `predicted` or the law, a text that is
                no component, or a frame past the end of the law's clips.
        """
        self._check(x, t, text, frames, visible)
        assert not (write_cache and (cache is None or torch.is_grad_enabled())), (
            "write_cache needs a cache and torch.no_grad()"
        )
        own = x.flatten(2)[:, :, None], t[:, :, None, None]  # as keys and values of one head
        count, held = x.shape[1], len(cache or ())
        first = first_predicted(predicted, count)
        observed = own if cache is None else cache.with_context(0, count)(*own)
        mask = torch.ones(count, count, dtype=torch.bool) if visible is None else visible
        v = self.law.velocity(
            observed[0][:, :, 0].double(),
            observed[1][:, :, 0, 0].double(),
            positions=[*(cache.frames if cache is not None else ()), *frames.tolist()],
            visible=nn.functional.pad(mask[first:].cpu(), (held, 0), value=True),
            queries=range(held + first, held + count),
            log_prior=self._log_prior(text),
        )
        if write_cache:
            cache.append(frames.tolist(), [own])
        return v.view_as(x[:, first:]).float()

    def _log_prior(self, text: Tensor) -> Tensor:
        """[B, 1, K] -> log weights of the components, [B, K] float64."""
        chosen = text[:, 0].double()
        anyone = self.law.log_prior(None, chosen)
        return torch.where(chosen.any(1, keepdim=True), chosen.log(), anyone)

    def _check(
        self, x: Tensor, t: Tensor, text: Tensor, frames: Tensor, visible: Tensor | None
    ) -> None:
        batch, count = x.shape[:2]
        if t.shape != (batch, count) or frames.shape != (count,):
            raise ValueError(
                f"x {tuple(x.shape)} needs t {(batch, count)} and frames ({count},), "
                f"got {tuple(t.shape)} and {tuple(frames.shape)}"
            )
        if visible is not None and (visible.shape != (count, count) or visible.dtype != torch.bool):
            raise ValueError(
                f"{count} frames need a bool visible [{count}, {count}], got {visible.dtype} "
                f"{tuple(visible.shape)}"
            )
        if x.shape[2] != self.config.in_channels or x[0, 0].numel() != self.law.size:
            raise ValueError(
                f"latents {tuple(x.shape[2:])} are not {self.config.in_channels} channels and "
                f"{self.law.size} numbers"
            )
        one_hot = ((text == 0) | (text == 1)).all() and (text.sum(-1) <= 1).all()
        if text.shape != (batch, 1, self.law.components) or not one_hot:
            raise ValueError(
                f"text must be one-hot or zeros, [{batch}, 1, {self.law.components}], got "
                f"{tuple(text.shape)}"
            )

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write config.json, which is all there is."""
        self.save_config(save_directory)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, output_loading_info: bool = False
    ) -> Self | tuple[Self, dict[str, list[str]]]:
        """Read what `save_pretrained` wrote; diffusers' report on weights says none is missing.

        Raises:
            ValueError: names the number that is missing or makes no law.
        """
        config = cls.load_config(folder)
        expected = {field.name for field in fields(GaussianWorld)}
        if set(config.get("law", ())) != expected:
            raise ValueError(f"config.json: law must have {', '.join(sorted(expected))}")
        network = cls.from_config(config)
        return (network, {"missing_keys": []}) if output_loading_info else network
