"""What CLIP's text tower and vision tower have in common: the transformer encoder, and transformers' file layout.

"Learning Transferable Visual Models From Natural Language Supervision", Radford et al. 2021, section 2.4. Parameter
names are those of the published checkpoints.

Letters in shapes: B samples, T tokens, C hidden size, nh heads, hs head size.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from ..attention.sdpa import fused_attention
from ..core.config import write_json
from ..core.errors import ConfigError
from ..core.wording import dtype_name
from .base import Network
from .blocks import GradientCheckpointing
from .linear import Linear


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """The sigmoid approximation of GELU (Hendrycks & Gimpel 2016) that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}

# What transformers writes into a config.json beside CLIP's settings: where it came from, and the settings of text
# generators and of training, which change nothing in an encoder.
# fmt: off
CONFIG_NOTES = frozenset([
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "dropout", "tokenizer_class",
    "prefix", "finetuning_task", "return_dict", "output_hidden_states", "output_attentions", "torchscript",
    "use_bfloat16", "tf_legacy_loss", "pruned_heads", "use_cache", "tie_word_embeddings", "is_encoder_decoder",
    "is_decoder", "cross_attention_hidden_size", "add_cross_attention", "problem_type", "tie_encoder_decoder",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "bad_words_ids", "id2label", "encoder_no_repeat_ngram_size", "num_return_sequences", "chunk_size_feed_forward",
    "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "label2id",
    "gradient_checkpointing",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "task_specific_params",
])
# fmt: on


class CLIPNetwork(Network):
    """A network stored as transformers stores CLIP: `model.safetensors`, a config.json with the notes above."""

    weights_stem: ClassVar[str] = "model"
    ignored_keys: ClassVar[tuple[str, ...]] = (r"(^|\.)embeddings\.position_ids$",)
    model_type: ClassVar[str]
    _no_split_modules: ClassVar[list[str]] = ["CLIPEncoderLayer"]

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """`enable_gradient_checkpointing`, as transformers calls it; keywords are those of torch's checkpoint."""
        given = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        self.enable_gradient_checkpointing(functools.partial(torch.utils.checkpoint.checkpoint, **given))

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        self.disable_gradient_checkpointing()

    activation_checkpointing_enable = gradient_checkpointing_enable
    activation_checkpointing_disable = gradient_checkpointing_disable

    @classmethod
    def _carry(cls, foreign: dict[str, Any]) -> dict[str, Any]:
        return super()._carry({key: value for key, value in foreign.items() if key not in CONFIG_NOTES})

    def save_config(self, folder: str | Path) -> None:
        """Write `folder`/config.json in the layout that transformers reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        notes = {"architectures": [type(self).__name__], "model_type": self.model_type}
        dtype = {"torch_dtype": dtype_name(self.dtype)}
        write_json(Path(folder) / self.config_name, {**self.config, **notes, **dtype})


class CLIPAttention(nn.Module):
    """Multi-head self-attention over (B, T, C)."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ConfigError(
                f"hidden_size={hidden_size} does not divide into num_attention_heads={num_heads} heads of equal size: "
                "the first must be a multiple of the second."
            )
        self.num_heads, self.dropout = num_heads, dropout
        self.q_proj = Linear(hidden_size, hidden_size)
        self.k_proj = Linear(hidden_size, hidden_size)
        self.v_proj = Linear(hidden_size, hidden_size)
        self.out_proj = Linear(hidden_size, hidden_size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, is_causal: bool) -> torch.Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, nh, T, hs)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        y = fused_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)


class CLIPMLP(nn.Module):
    """Two linear layers around CLIP's activation."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"hidden_act={activation!r} is not supported: use one of {', '.join(ACTIVATIONS)}.")
        self.activation = ACTIVATIONS[activation]
        self.fc1 = Linear(hidden_size, intermediate_size)
        self.fc2 = Linear(intermediate_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPEncoderLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, hidden_size: int, intermediate_size: int, num_heads: int, act: str, eps: float, dropout: float):
        super().__init__()
        self.self_attn = CLIPAttention(hidden_size, num_heads, dropout)
        self.layer_norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = CLIPMLP(hidden_size, intermediate_size, act)
        self.layer_norm2 = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, is_causal: bool) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, is_causal)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(GradientCheckpointing):
    """The stack of layers that CLIP's text tower (causal) and vision tower (not) have in common."""

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        hidden_act: str,
        layer_norm_eps: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        shape = (hidden_size, intermediate_size, num_attention_heads, hidden_act, layer_norm_eps, attention_dropout)
        self.layers = nn.ModuleList(CLIPEncoderLayer(*shape) for _ in range(num_hidden_layers))

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, *, is_causal: bool = False, keep_all: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """(B, T, C) -> the last layer's output and, with `keep_all`, the input and every layer's output."""
        kept = [x]
        for layer in self.layers:
            x = self.layer(layer, x, mask, is_causal)
            if keep_all:
                kept.append(x)
        return x, tuple(kept) if keep_all else None
