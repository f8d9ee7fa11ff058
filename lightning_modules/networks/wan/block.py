"""A layer of Wan 2.1 with per-frame modulation, a frame-level attention mask and a KV cache.

Shapes: B batch, N frames, S tokens per frame, T = N * S own tokens, K = T plus cached tokens,
L prompt tokens, D model width, H heads, E = D / H channels per head. Q = P * S tokens are queries:
P = N, but in the last layer the P last frames, those that are predicted; of the others it has keys
and values alone.

With cameras self-attention has 2 H heads, of which the second half is under PRoPE
(`networks/cameras.py`); heads do not know each other, so this is two attentions in one kernel call,
under one mask and with one KV cache.

Norms, modulation and RoPE are float32 even under autocast. Attention kernels come from libraries;
the three parts of a layer between them may be compiled.

Source: diffusers `transformer_wan.py`.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn
from torch.autograd import forward_ad

from lightning_modules.networks.cameras import tiled
from lightning_modules.networks.wan.attention import Mask, attend
from lightning_modules.networks.wan.compiled import compiled
from lightning_modules.networks.wan.kv_cache import KeyValue, WithContext
from lightning_modules.networks.wan.linear_gelu import linear_gelu
from lightning_modules.networks.wan.rms_norm import rms_norm
from lightning_modules.networks.wan.rotary import apply_rope


class WanBlock(WanTransformerBlock):
    """diffusers' layer, with the same parameters, under an attention mask and with a KV cache."""

    compiled = False
    fused = False

    def add_cameras(self) -> None:
        """Add the output projection of the heads under PRoPE, zero at first."""
        width = self.attn1.to_out[0].out_features
        self.attn1.to_prope = nn.Linear(width, width)
        nn.init.zeros_(self.attn1.to_prope.weight)
        nn.init.zeros_(self.attn1.to_prope.bias)

    def fuse(self) -> None:
        """For inference, for good: one product for q, k and v, in the memory of the three; GELU."""
        self.fused = True
        layer, width = self.attn1, self.attn1.to_q.out_features
        layer.fuse_projections()
        parts = layer.to_q, layer.to_k, layer.to_v
        for at, part in enumerate(parts):
            for name in ("weight", "bias"):
                whole = getattr(layer.to_qkv, name)
                getattr(part, name).data = whole.data[at * width : (at + 1) * width]
        layer.to_qkv.requires_grad_(False)

    def forward(
        self,
        x: Tensor,  # [B, N, S, D]
        modulation: Tensor,  # [B, N, 6, D] float32
        prompt: KeyValue,  # cross-attention keys and values, each [B, L, H, E]
        rope: Tensor,  # [T, 1, E / 2, 2] float32
        mask: Mask,
        with_context: WithContext,  # own k, v [B, T, H, E] -> attended [B, K, H, E]
        cameras: Tensor | None,  # [B, N, 3, 4, 4] float32; the heads are then 2 H
        first: int = 0,  # N - P, the first frame that queries
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x [B, P, S, D] and this call's own keys and values [B, T, H, E]."""
        table = (self.scale_shift_table.float() + modulation).unsqueeze(-2).unbind(2)
        shift, scale, *after_attention = table  # each [B, N, 1, D]
        parts = _compiled_parts() if self.compiled and not _has_tangents() else _parts()
        self_attention_qkv, cross_attention_q, mlp = parts

        room = getattr(with_context, "room", None)
        q, k, v = self_attention_qkv(self, x, shift, scale, rope, cameras, room, first)
        keys, values = with_context(k, v)
        x = x[:, first:]
        if not x.shape[1]:
            return x, k, v
        out = attend(q, keys, values, mask)
        gate, mlp_shift, mlp_scale, mlp_gate = (each[:, first:] for each in after_attention)
        cameras = None if cameras is None else cameras[:, first:]
        x, q = cross_attention_q(self, x, out, gate, cameras)
        out = attend(q.type_as(prompt[1]), *prompt)
        return mlp(self, x, out, mlp_shift, mlp_scale, mlp_gate), k, v

    def self_attention_qkv(
        self,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        rope: Tensor,
        cameras: Tensor | None,
        room: KeyValue | None,
        first: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention's q [B, Q, H, E] and k after QK-norm and RoPE, and v, [B, T, H, E].

        With cameras the same heads follow once more, under PRoPE in place of RoPE. k and v are
        written to ``room``, if there is any, by the kernel that computes them.
        """
        q, k, v = self._qkv(x, shift, scale, rope, cameras, first)
        if room is None:
            return q, k, v
        room[0].copy_(k)
        room[1].copy_(v)
        return q, *room

    def _qkv(
        self,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        rope: Tensor,
        cameras: Tensor | None,
        first: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        layer, before = self.attn1, first * x.shape[2]
        q, k, v = self._projected(modulate(self.norm1, x, shift, scale).flatten(1, 2), before)
        heads = (layer.heads, -1)
        q = rms_norm(layer.norm_q, q).unflatten(-1, heads)
        k = rms_norm(layer.norm_k, k).unflatten(-1, heads)
        v = v.unflatten(-1, heads)
        rotated = apply_rope(q, rope[before:]).type_as(v), apply_rope(k, rope).type_as(v), v
        if cameras is None:
            return rotated
        matrix, inverse, _ = cameras.unbind(2)
        q = tiled(q, matrix[:, first:].mT)
        posed = q.type_as(v), tiled(k, inverse).type_as(v), tiled(v, inverse)
        return tuple(torch.cat(heads, 2) for heads in zip(rotated, posed, strict=True))

    def _projected(self, x: Tensor, before: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of tokens [B, T, D] q, without that of so many at the front, and k and v."""
        layer = self.attn1
        if not layer.fused_projections:
            return layer.to_q(x[:, before:]), layer.to_k(x), layer.to_v(x)
        if not before:
            return layer.to_qkv(x).chunk(3, -1)
        keys_and_values = (each[x.shape[-1] :] for each in (layer.to_qkv.weight, layer.to_qkv.bias))
        return layer.to_q(x[:, before:]), *F.linear(x, *keys_and_values).chunk(2, -1)

    def cross_attention_q(
        self, x: Tensor, out: Tensor, gate: Tensor, cameras: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Self-attention residual, then cross-attention's q [B, Q, H, E]."""
        layer = self.attn2
        x = gated(x, self.self_attention_out(out, cameras).view_as(x), gate)
        normed = self.norm2(x.float()).type_as(x) if isinstance(self.norm2, nn.LayerNorm) else x
        q = rms_norm(layer.norm_q, layer.to_q(normed.flatten(1, 2)))
        return x, q.unflatten(-1, (layer.heads, -1))

    def self_attention_out(self, out: Tensor, cameras: Tensor | None) -> Tensor:
        """Self-attention's output projections [B, Q, D] of all heads [B, Q, D or 2 D]."""
        layer = self.attn1
        if cameras is None:
            return layer.to_out[0](out)
        rotated, posed = out.chunk(2, -1)
        seen = tiled(posed.unflatten(-1, (layer.heads, -1)), cameras[:, :, 0]).flatten(2)
        return layer.to_out[0](rotated) + layer.to_prope(seen)

    def mlp(self, x: Tensor, out: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """Cross-attention residual, then the MLP."""
        x = x + self.attn2.to_out[0](out).view_as(x)
        return gated(x, self._ffn(modulate(self.norm3, x, shift, scale)), gate)

    def _ffn(self, x: Tensor) -> Tensor:
        if not self.fused:
            return self.ffn(x)
        (first, _, last), dtype = self.ffn.net, x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        weights = (each.to(dtype) for each in (x, first.proj.weight, first.proj.bias))
        return last(linear_gelu(*weights))

    def cross_attention_kv(self, text: Tensor) -> KeyValue:
        """Cross-attention's keys and values [B, L, H, E] of the embedded prompt [B, L, D]."""
        layer = self.attn2
        v = layer.to_v(text)
        k = rms_norm(layer.norm_k, layer.to_k(text)).type_as(v)
        heads = (layer.heads, -1)
        return k.unflatten(-1, heads), v.unflatten(-1, heads)


def modulate(norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return norm(x) (1 + scale) + shift, in float32."""
    return (norm(x.float()) * (1 + scale) + shift).type_as(x)


def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """Return x + gate update, in float32."""
    return (x.float() + update.float() * gate).type_as(x)


def _has_tangents() -> bool:
    """The compiler knows no forward derivative."""
    return forward_ad._current_level >= 0


def _parts() -> tuple[Callable, ...]:
    return WanBlock.self_attention_qkv, WanBlock.cross_attention_q, WanBlock.mlp


@cache
def _compiled_parts() -> tuple[Callable, ...]:
    """Compiled once for all layers: their weights are inputs."""
    return tuple(map(compiled, _parts()))
