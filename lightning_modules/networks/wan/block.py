"""A layer of Wan 2.1: diffusers' parameters, frames that see each other by a matrix, a cached past.

Tokens are [B, N, S, D]: N frames of S tokens. Norms, modulation and rotation are float32 even
under autocast. The three pieces between the attention kernels can be compiled.

Source: diffusers `transformer_wan.py`.
"""

from collections.abc import Callable
from functools import cache

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn

from lightning_modules.networks.wan.attention import Mask, attend
from lightning_modules.networks.wan.kv_cache import Beside, Pair
from lightning_modules.networks.wan.rms_norm import rms_norm
from lightning_modules.networks.wan.rotary import rotate


class Block(WanTransformerBlock):
    """diffusers' block (same parameters) with per-frame modulation, a mask and a cached past.

    Attention kernels come from libraries; the three pieces between them may be `compiled`.
    """

    compiled = False

    def forward(
        self,
        x: Tensor,  # [B, N, S, D]
        modulation: Tensor,  # [B, N, 6, D] float32
        prompt: Pair,  # keys and values of the text, each [B, L, heads, head_dim]
        turn: Tensor,
        mask: Mask,
        beside: Beside,  # from own keys and values to all that is seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return frames [B, N, S, D] and the keys and values they showed [B, N*S, heads, hd]."""
        table = (self.scale_shift_table.float() + modulation).unsqueeze(-2).unbind(2)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table  # each [B, N, 1, D]
        show, ask, finish = _compiled_pieces() if self.compiled else _pieces()

        queries, keys, values = show(self, x, shift, scale, turn)
        seen = attend(queries, *beside(keys, values), mask)
        x, asked = ask(self, x, seen, gate)
        answer = attend(asked.type_as(prompt[1]), *prompt)
        return finish(self, x, answer, mlp_shift, mlp_scale, mlp_gate), keys, values

    def show(
        self, x: Tensor, shift: Tensor, scale: Tensor, turn: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each [B, T, heads, hd]."""
        attention, x = self.attn1, modulate(self.norm1, x, shift, scale).flatten(1, 2)
        heads = (attention.heads, -1)
        queries = rms_norm(attention.norm_q, attention.to_q(x)).unflatten(-1, heads)
        keys = rms_norm(attention.norm_k, attention.to_k(x)).unflatten(-1, heads)
        values = attention.to_v(x).unflatten(-1, heads)
        return rotate(queries, turn).type_as(values), rotate(keys, turn).type_as(values), values

    def ask(self, x: Tensor, seen: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """Take in what was seen; return the frames and their queries to the prompt."""
        attention = self.attn2
        x = gated(x, self.attn1.to_out[0](seen).view_as(x), gate)
        normed = self.norm2(x.float()).type_as(x) if isinstance(self.norm2, nn.LayerNorm) else x
        asked = rms_norm(attention.norm_q, attention.to_q(normed.flatten(1, 2)))
        return x, asked.unflatten(-1, (attention.heads, -1))

    def finish(
        self, x: Tensor, answer: Tensor, shift: Tensor, scale: Tensor, gate: Tensor
    ) -> Tensor:
        """Take in the prompt's answer, then the feed-forward net."""
        x = x + self.attn2.to_out[0](answer).view_as(x)
        return gated(x, self.ffn(modulate(self.norm3, x, shift, scale)), gate)

    def read_prompt(self, text: Tensor) -> Pair:
        """Return keys and values [B, L, heads, head_dim] of the embedded text [B, L, D]."""
        attention = self.attn2
        values = attention.to_v(text)
        keys = rms_norm(attention.norm_k, attention.to_k(text)).type_as(values)
        heads = (attention.heads, -1)
        return keys.unflatten(-1, heads), values.unflatten(-1, heads)


def modulate(norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return norm(x) (1 + scale) + shift, in float32."""
    return (norm(x.float()) * (1 + scale) + shift).type_as(x)


def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """Return x + gate update, in float32."""
    return (x.float() + update.float() * gate).type_as(x)


def _pieces() -> tuple[Callable, ...]:
    return Block.show, Block.ask, Block.finish


@cache
def _compiled_pieces() -> tuple[Callable, ...]:
    """One compilation serves all layers: their weights are inputs."""
    return tuple(torch.compile(piece, dynamic=False) for piece in _pieces())
