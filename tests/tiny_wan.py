"""Random tiny Wan 2.1 pipelines in the real on-disk layout, built offline in about a second.

    model_index.json  transformer/  vae/  text_encoder/  tokenizer/  scheduler/

Every part is the published class at a small size, and diffusers and transformers save it
themselves, so whatever reads such a folder reads the published one. Strides (4 frames, 8 x 8
pixels), 16 channels and the latents' means and deviations are Wan's. All folders share one VAE and
one text encoder, as Wan's 1.3B and 14B do.

Tests get them from the session's fixtures `wan_folder` (a student's size) and `wan_score_folder` (a
larger network); nobody may write there: damage a copy.
"""

import string
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

TEXT_DIM = 32
CHANNELS = 16
SENTENCES = ("a seven moving left, fast", "a cat walks on the grass", "still water at night")


@dataclass(frozen=True)
class Size:
    """Of a transformer, in diffusers' words."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    ffn_dim: int
    freq_dim: int = 64


STUDENT = Size(num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=64)
SCORE = Size(num_layers=3, num_attention_heads=2, attention_head_dim=18, ffn_dim=96)


def save_pipeline(folder: Path, size: Size = STUDENT, seed: int = 0) -> Path:
    """Write a whole pipeline; `seed` decides the transformer, all folders share the other parts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = transformer_of(size)
        torch.manual_seed(0)
        tokenizer = _tokenizer()
        WanPipeline(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer)),
            vae=_vae(),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            transformer=transformer,
        ).save_pretrained(folder)
    return folder


def transformer_of(size: Size) -> WanTransformer3DModel:
    """A stock transformer, weights by torch's global seed."""
    return WanTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, text_dim=TEXT_DIM, **asdict(size)
    )


def _vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=3, z_dim=CHANNELS, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def _text_encoder(words: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=words, d_model=TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    return UMT5EncoderModel(config)


def _tokenizer() -> T5Tokenizer:
    """Whole words of `SENTENCES`, any other printable ASCII text letter by letter."""
    words = sorted({f"▁{word}" for sentence in SENTENCES for word in sentence.split()})
    letters = sorted(set(string.printable) - set(string.whitespace))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(piece, -2.0) for piece in words] + [(piece, -9.0) for piece in ["▁", *letters]]
    return T5Tokenizer(vocab=pieces, extra_ids=0)
