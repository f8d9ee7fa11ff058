"""umT5 text encoders: the tiny world's, randomly initialised, and Wan's; `encoders.TextEncoder`."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.networks.fingerprint import digest, digest_of_files, digest_of_weights
from lightning_modules.networks.pipeline_folder import (
    load_part,
    load_tokenizer,
    locate,
    read_config,
    require_tokenizer,
    weight_files,
)
from lightning_modules.ranges import PositiveInt, Seed

WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，"
    "毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt of published Wan 2.1 (wan/configs/shared_config.py, sample_neg_prompt); Self
Forcing, Causal Forcing and Causal Forcing++ use it as well, never the empty string."""


@torch.no_grad()
def _embed(tokenizer: Any, model: nn.Module, prompts: Sequence[str], length: int) -> Tensor:
    """float32 [B, length, D]; padded positions are zero, as in Wan's training."""
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).to(next(model.parameters()).device)
    hidden = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return hidden.float().masked_fill(tokens.attention_mask[..., None] == 0, 0.0)


class TinyText:
    """A frozen, randomly initialised umT5 over a closed vocabulary: the tiny world's text encoder.

    Args:
        words: every word of the captions; order and repetition do not matter. Punctuation counts
            as words of its own.
        length: tokens of an embedding, the end mark included.
        dim: width of an embedding.
        seed: of the weights; the global random state is left as it was.
    """

    def __init__(
        self, words: Sequence[str], length: PositiveInt = 12, dim: PositiveInt = 32, seed: Seed = 0
    ) -> None:
        self.length, self.dim, self._seed = length, dim, seed
        special = ["<pad>", "</s>", "<unk>"]
        self._vocabulary = {word: index for index, word in enumerate(special + sorted(set(words)))}

    @cached_property
    def id(self) -> str:
        """Hash of the vocabulary and the weights."""
        weights = b"".join(part.numpy().tobytes() for part in self._model.state_dict().values())
        settings = json.dumps([type(self).__name__, self.length, self._vocabulary])
        return digest(settings.encode(), weights)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.WordLevel(self._vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        end = [("</s>", self._vocabulary["</s>"])]
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=end)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )

    @cached_property
    def _model(self) -> nn.Module:
        from transformers import UMT5Config, UMT5EncoderModel

        config = UMT5Config(
            vocab_size=len(self._vocabulary),
            d_model=self.dim,
            d_kv=self.dim // 4,
            d_ff=2 * self.dim,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return UMT5EncoderModel(config).eval().requires_grad_(False)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> float32 [B, length, dim].

        Raises:
            ValueError: if a prompt has a word outside the vocabulary or does not fit.
        """
        for prompt in prompts:
            split = self._tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(prompt)
            unknown = [word for word, _ in split if word not in self._vocabulary]
            if unknown:
                known = " ".join(list(self._vocabulary)[3:])
                raise ValueError(
                    f"prompt {prompt!r}: unknown words {unknown}; this text encoder knows: {known}"
                )
            if len(split) >= self.length:
                raise ValueError(f"prompt {prompt!r}: more than {self.length - 1} words")
        return _embed(self._tokenizer, self._model, prompts, self.length)

    def beyond(self, prompts: Sequence[str]) -> list[int]:
        """Empty: a prompt that does not fit is refused."""
        return []


class WanText:
    """Wan's umT5-xxl: 512 tokens, padded positions zeroed.

    Prompts are first cleaned as diffusers' `WanPipeline` does (broken encodings, HTML entities,
    repeated white space).

    Args:
        folder: a pipeline with text_encoder/ and tokenizer/, by path or hub id.
        device: where it runs.
        dtype: of the weights; Wan publishes bfloat16.
        length: tokens of an embedding; longer prompts are cut.

    Raises:
        FileNotFoundError: if the folder lacks either part, or has only a part of one.
        ValueError: if a file is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        length: int = 512,
    ) -> None:
        home = locate(folder, "text_encoder", "tokenizer")
        self._part, self._words = home / "text_encoder", home / "tokenizer"
        config = read_config(self._part)
        weight_files(self._part)
        require_tokenizer(self._words)
        self.source = str(folder)
        self.length, self.dim = length, config["d_model"]
        self._device, self._dtype = device, dtype

    @cached_property
    def id(self) -> str:
        """Hash of the tokenizer, the weights and the length."""
        parts = digest_of_weights(self._part), digest_of_files(self._words), str(self.length)
        return digest(*(part.encode() for part in parts))

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._words)

    @cached_property
    def _model(self) -> nn.Module:
        from transformers import UMT5EncoderModel

        model = load_part(UMT5EncoderModel, self._part, dtype=self._dtype)
        return model.to(self._device).eval().requires_grad_(False)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> float32 [B, length, dim]; longer prompts are cut."""
        return _embed(self._tokenizer, self._model, _cleaned(prompts), self.length)

    def beyond(self, prompts: Sequence[str]) -> list[int]:
        """Numbers of tokens, the end mark included, of those prompts that `encode` cuts."""
        # A token is a byte or more, so most prompts need not be tokenised.
        long = [text for text in _cleaned(prompts) if len(text.encode()) >= self.length - 1]
        counts = [len(ids) for ids in self._tokenizer(long).input_ids] if long else []
        return [count for count in counts if count > self.length]


def _cleaned(prompts: Sequence[str]) -> list[str]:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    return [prompt_clean(prompt) for prompt in prompts]
