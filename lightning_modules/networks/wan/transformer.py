"""Wan 2.1 as a frame-causal network: diffusers' parameters, our forward.

No parameter is added (but with `cameras`) or renamed, so folders of stock `WanTransformer3DModel`
load here and folders saved here load there; the differences are in attention and time:

- self-attention takes a frame-level mask and a KV cache;
- the noise level is one number per *frame*: modulation is [B, N, 6, D], broadcast over a frame's S
  tokens;
- frame positions for RoPE are an argument.

Inside, tokens are [B, N, S, D]: N frames of S = (H/2)(W/2) tokens. Norms, modulation, time
embedding and RoPE are float32 even under autocast.

Sources: Wan (2025), arXiv 2503.20314; diffusers `transformer_wan.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import (
    WanTimeTextImageEmbedding,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from lightning_modules.networks.cameras import check_cameras
from lightning_modules.networks.wan.attention import Mask, attention_mask
from lightning_modules.networks.wan.block import WanBlock, modulate
from lightning_modules.networks.wan.checkpointing import checkpointed
from lightning_modules.networks.wan.kv_cache import KeyValue, KVCache, no_context
from lightning_modules.networks.wan.motion_embedder import MotionEmbedder
from lightning_modules.networks.wan.patches import embedded_patches, grid, unpatched
from lightning_modules.networks.wan.precision import to_bfloat16
from lightning_modules.networks.wan.rotary import rope_table
from lightning_modules.networks.wan.shapes import check_shapes, first_predicted
from lightning_modules.networks.wan.static_cache import StaticKVCache
from lightning_modules.ranges import Positive, PositiveInt


class Wan(ModelMixin, ConfigMixin):
    """Wan 2.1 text-to-video at any size, under the contract of `networks/__init__.py`.

    All arguments but the last three are diffusers' own: a stock `config.json` holds them.

    Args:
        cameras: whether frames have cameras.
        prope: whether these enter by more heads of self-attention under PRoPE, with an output
            projection of their own, `blocks.N.attn1.to_prope`, zero at first.
        motion: whether modulation has the camera's motion (`motion_embedder.py`), zero at first.
    """

    counted_as_wan = True
    silent_at_first = ("cameras", "prope", "motion")
    _supports_gradient_checkpointing = True
    _no_split_modules = ["WanBlock"]
    _keep_in_fp32_modules = [*WanTransformer3DModel._keep_in_fp32_modules, "motion_embedder"]
    _keys_to_ignore_on_load_unexpected = WanTransformer3DModel._keys_to_ignore_on_load_unexpected

    @register_to_config
    def __init__(
        self,
        num_attention_heads: PositiveInt,
        attention_head_dim: PositiveInt,
        in_channels: PositiveInt,
        out_channels: PositiveInt,
        text_dim: PositiveInt,
        ffn_dim: PositiveInt,
        num_layers: PositiveInt,
        freq_dim: PositiveInt = 256,
        patch_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 2, 2),
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: Positive = 1e-6,
        image_dim: PositiveInt | None = None,
        added_kv_proj_dim: PositiveInt | None = None,
        rope_max_seq_len: PositiveInt = 1024,
        pos_embed_seq_len: PositiveInt | None = None,
        cameras: bool = False,
        prope: bool = True,
        motion: bool = False,
    ):
        super().__init__()
        if patch_size[0] != 1:
            raise ValueError(f"patch_size {patch_size}: frames must not be merged, use (1, 2, 2)")
        if image_dim is not None or added_kv_proj_dim is not None:
            raise ValueError(
                "image_dim/added_kv_proj_dim: this is an image-to-video Wan, use a T2V one"
            )
        width = num_attention_heads * attention_head_dim
        self.patch_embedding = nn.Conv3d(in_channels, width, patch_size, patch_size)
        self.condition_embedder = WanTimeTextImageEmbedding(width, freq_dim, width * 6, text_dim)
        self.blocks = nn.ModuleList(
            WanBlock(width, ffn_dim, num_attention_heads, qk_norm, cross_attn_norm, eps)
            for _ in range(num_layers)
        )
        if cameras and not prope and not motion:
            raise ValueError(
                "network.prope is false, so that cameras enter by nothing: set network.motion=true"
            )
        if self.prope:
            if attention_head_dim % 4:
                raise ValueError(f"attention_head_dim: {attention_head_dim} with cameras, use 4 n")
            for block in self.blocks:
                block.add_cameras()
        if motion:
            if not cameras:
                raise ValueError("network.motion is that of cameras: set network.cameras=true, too")
            self.motion_embedder = MotionEmbedder(width)
        self.norm_out = FP32LayerNorm(width, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(width, out_channels * math.prod(patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)
        self.gradient_checkpointing = False

    @property
    def prope(self) -> bool:
        """Whether self-attention has heads under PRoPE."""
        return self.config.cameras and self.config.prope

    def new_cache(self, frames: int | None = None) -> KVCache:
        """An empty KV cache for one rollout of one batch; with `frames`, of that fixed size."""
        layers = len(self.blocks)
        if frames is None:
            return KVCache(layers, self.prope)
        return StaticKVCache(layers, frames, self.prope)

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
        cameras: Tensor | None = None,
        until: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity eps - x0 [B, P, C, H, W] float32; see `networks/__init__.py`.

        ``until`` [B, N] is for `TwoTimeWan` alone.

        Raises:
            ValueError: if shapes disagree with each other, `predicted` or the patch size.
        """
        check_shapes(x, t, frames, visible, self.config.patch_size)
        check_cameras(self.config, x, cameras)
        assert not (write_cache and (cache is None or torch.is_grad_enabled())), (
            "write_cache needs a cache and torch.no_grad()"
        )
        positions = tuple(frames.tolist())
        first = first_predicted(predicted, x.shape[1])
        rope, masks = self.rope_and_masks(x, positions, visible, cache, first)
        pairs: list[KeyValue] | None = [] if write_cache else None
        v = self.velocity(x, t, text, rope, masks, cache, pairs, first, cameras, until)
        if write_cache:
            cache.append(positions, pairs)
        return v

    def velocity(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        rope: Tensor,
        masks: Sequence[Mask],
        cache: KVCache | None,
        pairs: list[KeyValue] | None = None,
        first: int = 0,
        cameras: Tensor | None = None,
        until: Tensor | None = None,
    ) -> Tensor:
        """The forward pass, of tensors alone; each layer's keys and values are added to `pairs`.

        Frames before ``first`` are not predicted: the last layer has only keys and values of them.
        """
        tokens = embedded_patches(x, self.patch_embedding)
        embedded, modulation = self._embed_time(t, until)
        if self.config.motion:
            modulation = modulation + self.motion_embedder(cameras[:, :, 2])
        prompts = self.cross_attention_kv(text, cache)
        seen = cameras if self.prope else None
        for layer, (block, mask) in enumerate(zip(self.blocks, masks, strict=True)):
            run = block
            if self.gradient_checkpointing and torch.is_grad_enabled():
                run = checkpointed(block, self.gradient_checkpointing)
            context = no_context if cache is None else cache.with_context(layer, x.shape[1])
            given = modulation, prompts[layer], rope, mask, context, seen
            tokens, *pair = run(tokens, *given, first if block is self.blocks[-1] else 0)
            if pairs is not None:
                pairs.append(tuple(pair))
        return self._unpatch(tokens, embedded[:, first:], *grid(x, self.patch_embedding))

    def rope_and_masks(
        self,
        x: Tensor,
        positions: tuple[int, ...],
        visible: Tensor | None,
        cache: KVCache | None,
        first: int = 0,
    ) -> tuple[Tensor, list[Mask]]:
        """RoPE table, and each layer's attention mask: made once, then shared by equal calls."""
        height, width = grid(x, self.patch_embedding)
        rope = rope_table(positions, height, width, self.config.attention_head_dim, x.device)
        dtype = self.patch_embedding.weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        how = visible, height * width, len(cache or ()), x.device, dtype
        heads = self.config.num_attention_heads * (1 + self.prope), self.config.attention_head_dim
        timed = heads, self.gradient_checkpointing
        others = [attention_mask(*how, 0, *timed)] * (len(self.blocks) - 1)
        return rope, [*others, attention_mask(*how, first, *timed)]

    def zero_head(self) -> None:
        """Make the output zero, as Wan's own code initialises it."""
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def to_bfloat16(self) -> None:
        """Halve what a frozen network holds, in place, with the same outputs (`precision.py`)."""
        to_bfloat16(self)

    def accelerated(self, compiled: bool, graphs: bool) -> Any:
        """For sampling on CUDA: compiled, and with fewer products, for good; or in graphs."""
        from lightning_modules.networks.wan.cuda_graphs import Replay

        if compiled:
            self.compile_blocks()
            for block in self.blocks:
                block.fuse()
        return Replay(self) if graphs else self

    def compile_blocks(self) -> None:
        """Compile the parts between the attention kernels of every layer."""
        for block in self.blocks:
            block.compiled = True

    def with_second_time(self) -> Any:
        """The network with a second time, which answers as this one until it is trained."""
        from lightning_modules.networks.wan.two_time import TwoTimeWan

        return TwoTimeWan.of(self)

    def _embed_time(self, t: Tensor, until: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, N] -> [B, N, D] for the head and [B, N, 6, D] for the blocks, float32."""
        embedder = self.condition_embedder
        with torch.autocast(t.device.type, enabled=False):  # bfloat16 blurs neighbouring levels
            embedded = self._embed_levels(t, until)
            hidden = F.silu(embedded).to(embedder.time_proj.weight.dtype)
            modulation = embedder.time_proj(hidden).float()
        return embedded.float().unflatten(0, t.shape), modulation.unflatten(0, t.shape).unflatten(
            -1, (6, -1)
        )

    def _embed_levels(self, t: Tensor, until: Tensor | None) -> Tensor:
        """[B, N] -> [B * N, D], before SiLU."""
        assert until is None, "a network of one time; with_second_time() makes one of two"
        return self._embed_level(self.condition_embedder.time_embedder, t)

    def _embed_level(self, embedder: nn.Module, level: Tensor) -> Tensor:
        waves = self.condition_embedder.timesteps_proj(1000.0 * level.float().flatten())
        return embedder(waves.to(embedder.linear_1.weight.dtype))

    def cross_attention_kv(self, text: Tensor, cache: KVCache | None) -> list[KeyValue]:
        """Every layer's cross-attention keys and values; without gradient, once per rollout."""
        reuse = cache is not None and not torch.is_grad_enabled()
        if reuse and (known := cache.recall_text(text)) is not None:
            return known
        embedder = self.condition_embedder.text_embedder
        embedded = embedder(text.to(embedder.linear_1.weight.dtype))
        prompts = [block.cross_attention_kv(embedded) for block in self.blocks]
        if reuse:
            cache.remember_text(text, prompts)
        return prompts

    def _unpatch(self, tokens: Tensor, embedded: Tensor, height: int, width: int) -> Tensor:
        """[B, N, S, D] -> [B, N, C, H, W]: modulated norm, projection, patches back in place."""
        table = self.scale_shift_table.float() + embedded.unsqueeze(2)
        shift, scale = table.unsqueeze(-2).unbind(2)
        out = self.proj_out(modulate(self.norm_out, tokens, shift, scale)).float()
        return unpatched(out, height, width, *self.config.patch_size[1:])

    def to_json_string(self) -> str:
        """Name the stock class in `config.json`, so that diffusers' Auto classes find it.

        What stock diffusers does not know is said only where it holds.
        """
        ours, stock = (f'"_class_name": "{kind.__name__}"' for kind in (Wan, WanTransformer3DModel))
        text = super().to_json_string().replace(ours, stock)
        for usual in ('"cameras": false', '"prope": true', '"motion": false'):
            text = text.replace(f"  {usual},\n", "")
        return text
