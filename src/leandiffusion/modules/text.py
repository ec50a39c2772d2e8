"""CLIP's text encoder: the layouts of CLIP-L (SD1, SDXL), OpenCLIP-H (SD2) and OpenCLIP-bigG (SDXL).

"Learning Transferable Visual Models From Natural Language Supervision", Radford et al. 2021, section 2.4: a pre-norm
transformer with causal attention, whose output at the end-of-text token stands for the whole text. Parameter names are
those of the published checkpoints.

Letters in shapes: B texts, T tokens, C hidden size, L layers, P projection size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.output import Output
from .clip import CLIPEncoder, CLIPNetwork
from .linear import Linear


@dataclass(eq=False)
class BaseModelOutputWithPooling(Output):
    """`last_hidden_state` (B, T, C); `pooler_output` (B, C); `hidden_states`, if asked for, L + 1 times (B, T, C): the
    embeddings and each layer's output, the last one before the final layer norm."""

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass(eq=False)
class CLIPTextModelOutput(Output):
    """Of the model with projection: `text_embeds` (B, P) in place of `pooler_output`, which tools ask for first."""

    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True, eq=False)
class AddedTokens:
    """Vectors of tokens beside the table's: `ids` (n,) and their `rows` (n, C), and the same rows `by_word`."""

    ids: torch.Tensor
    rows: torch.Tensor
    by_word: dict[str, torch.Tensor]

    def look_up(self, ids: torch.Tensor, table: nn.Module) -> torch.Tensor:
        """Ids (..., T) -> vectors (..., T, C), those of other tokens from the table."""
        hits = ids[..., None] == self.ids.to(ids.device)
        added = hits.any(dim=-1)
        vectors = table(ids.masked_fill(added, 0))
        rows = self.rows.to(vectors)[hits.int().argmax(dim=-1).to(vectors.device)]
        return torch.where(added[..., None].to(vectors.device), rows, vectors)


class CLIPTextEmbeddings(nn.Module):
    """A learned vector per token plus a learned vector per position."""

    added: AddedTokens | None = None
    """Textual inversions; the table stays as it is, wherever it is."""

    def __init__(self, vocab_size: int, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        self.position_embedding = nn.Embedding(max_positions, hidden_size)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        length, limit = input_ids.shape[-1], self.position_embedding.num_embeddings
        if length > limit:
            raise ConfigError(f"a text of {length} tokens is longer than the {limit} this model knows: truncate it.")
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)[None]
        table = self.token_embedding
        tokens = table(input_ids) if self.added is None else self.added.look_up(input_ids, table)
        return tokens + self.position_embedding(position_ids)


class CLIPTextTransformer(nn.Module):
    """Embeddings, encoder and final norm: everything under `text_model.` in a checkpoint."""

    def __init__(self, vocab_size: int, max_positions: int, **encoder: Any) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(vocab_size, max_positions, encoder["hidden_size"])
        self.encoder = CLIPEncoder(**encoder)
        self.final_layer_norm = nn.LayerNorm(encoder["hidden_size"], eps=encoder["layer_norm_eps"])

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        keep_all: bool,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        x = self.embeddings(input_ids, position_ids)
        mask = None if attention_mask is None else causal_mask(attention_mask)
        x, kept = self.encoder(x, mask, is_causal=mask is None, keep_all=keep_all)
        return self.final_layer_norm(x), kept


def causal_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) with 1 for tokens and 0 for padding -> (B, 1, T, T) boolean: which token may attend to which."""
    length = attention_mask.shape[-1]
    past = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    return past & attention_mask.bool()[:, None, None, :]


class CLIPTextModel(CLIPNetwork):
    """Text encoder. The keywords are those of a checkpoint's config.json.

    `eos_token_id` says where the pooled output is read: at its first occurrence. The value 2, which old checkpoints
    carry by mistake, means the highest id of each text. `bos_token_id`, `pad_token_id` and `initializer_range` are
    kept in the config and change nothing. A fresh model is initialised as section 2.5 of the paper describes, scaled by
    `initializer_factor`.

    Raises ConfigError for settings that cannot be built.
    """

    model_type: ClassVar[str] = "clip_text_model"
    has_projection: ClassVar[bool] = False
    main_input_name: ClassVar[str] = "input_ids"

    def __init__(
        self,
        vocab_size: int = 49408,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        projection_dim: int | None = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 49406,
        eos_token_id: int = 49407,
    ) -> None:
        super().__init__()
        if not isinstance(eos_token_id, int):
            raise ConfigError(f"eos_token_id={eos_token_id!r} must be one token id, a whole number.")
        self.eos_token_id = eos_token_id
        self.text_model = CLIPTextTransformer(
            vocab_size,
            max_position_embeddings,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            hidden_act=hidden_act,
            layer_norm_eps=layer_norm_eps,
            attention_dropout=attention_dropout,
        )
        if self.has_projection:
            if projection_dim is None:
                raise ConfigError(f"{type(self).__name__} needs projection_dim, the size of text_embeds; found None.")
            self.text_projection = Linear(hidden_size, projection_dim, bias=False)
        self._initialise(hidden_size, num_hidden_layers, initializer_factor)

    def _initialise(self, hidden_size: int, num_layers: int, factor: float) -> None:
        width = factor * hidden_size**-0.5
        stds = {"embedding": 0.02 * factor, "out_proj": width, "fc1": width * 2**-0.5, "text_projection": width}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                inside = width * (2 * num_layers) ** -0.5  # q, k, v and fc2: what the residual stream sums over layers
                std = next((std for end, std in stds.items() if name.endswith(end)), inside)
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table (vocab_size, C), as textual inversion reads and extends it."""
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token table: (vocab_size, C)."""
        self.text_model.embeddings.token_embedding = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None, **_: Any) -> nn.Embedding:
        """Let the token table have that many rows, for words added to the tokenizer; None changes nothing.

        New rows are drawn as those of a fresh model. ConfigError for numbers below one.
        """
        table = self.get_input_embeddings()
        if new_num_tokens is None or new_num_tokens == table.num_embeddings:
            return table
        if new_num_tokens < 1:
            raise ConfigError(f"a token table of {new_num_tokens} rows: give one row for each token, len(tokenizer).")
        if self.text_model.embeddings.added is not None:
            raise ConfigError("textual inversions are loaded, whose rows are not in the table: unload them first.")
        weight = table.weight
        resized = nn.Embedding(new_num_tokens, table.embedding_dim, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            nn.init.normal_(resized.weight, std=0.02 * self.config.initializer_factor)
            kept = min(new_num_tokens, table.num_embeddings)
            resized.weight[:kept] = weight[:kept]
        resized.weight.requires_grad_(weight.requires_grad)
        self.set_input_embeddings(resized)
        self.register_to_config(vocab_size=new_num_tokens)
        return resized

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = False,
        return_dict: bool | None = True,
    ) -> BaseModelOutputWithPooling | CLIPTextModelOutput | tuple[Any, ...]:
        """Encode token ids.

        Args: `input_ids` (B, T), integers below vocab_size, T at most max_position_embeddings; `attention_mask`
        (B, T), 1 for tokens to read and 0 for padding; `position_ids` (1 or B, T), 0 to T - 1 unless given.

        Returns BaseModelOutputWithPooling, of a model with projection CLIPTextModelOutput, or its `to_tuple()` when
        `return_dict` is False. Raises ConfigError for texts that are too long.
        """
        hidden, kept = self.text_model(input_ids, attention_mask, position_ids, bool(output_hidden_states))
        ends = input_ids if self.eos_token_id == 2 else (input_ids == self.eos_token_id)
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), ends.int().argmax(dim=-1).to(hidden.device)]
        if self.has_projection:
            output = CLIPTextModelOutput(self.text_projection(pooled), hidden, kept)
        else:
            output = BaseModelOutputWithPooling(hidden, pooled, kept)
        return output.to_tuple() if return_dict is False else output

    @classmethod
    def rename_keys(cls, keys: list[str]) -> dict[str, str]:
        """Files written without the `text_model.` prefix get it."""
        bare = ("embeddings.", "encoder.", "final_layer_norm.")
        return {key: f"text_model.{key}" if key.startswith(bare) else key for key in keys}


class CLIPTextModelWithProjection(CLIPTextModel):
    """The text encoder followed by CLIP's projection of the pooled output: `text_embeds` (B, projection_dim)."""

    has_projection: ClassVar[bool] = True
