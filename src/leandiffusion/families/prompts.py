"""Prompts -> embeddings, with one CLIP text encoder, in one of two syntaxes.

Plain text is what diffusers makes of it: what is beyond the tokens that the encoder reads is cut off. The weighted
syntax (see `emphasis` and `chunks`) has weights, and any length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.errors import ConfigError
from .chunks import Tokens, chunks_of, tokens_of, weighted
from .emphasis import PLAIN, WEIGHTED, without_weights
from .encode import encode_text

Encode = Callable[..., tuple[Tensor, Tensor]]
"""`encode_text`, or what stands for it."""

Notice = Callable[[list[str]], object]
"""Called with the texts that are about to be encoded."""


@dataclass(frozen=True)
class Reading:
    """How the texts of a call are read: their `syntax`, who is told of them before they are encoded, who calls the
    text encoders, and how many tokens embeddings have at least."""

    syntax: str = PLAIN
    notice: Notice = lambda texts: None
    encoding: Encode = encode_text
    least: int = 0

    def tell(self, texts: list[str]) -> None:
        """Tell of the words in these texts."""
        self.notice([without_weights(text) for text in texts] if self.syntax == WEIGHTED else texts)

    def length(self, texts: Iterable[tuple[Any, list[str]]], given: Tensor | None = None) -> int:
        """Tokens that embeddings of all these texts have, each text with its tokenizer; those of `given` embeddings
        (B, T, C) that they go together with, where there are any."""
        own, chunks = 0, 1
        for tokenizer, some in texts:
            own = own or tokenizer.model_max_length
            if self.syntax == WEIGHTED:
                chunks = max(chunks, *(len(chunks_of(tokenizer, text)) for text in some))
        known = 0 if given is None else given.shape[1]
        if self.syntax == PLAIN or known > own * chunks:
            return known or own
        return max(own * chunks, self.least)

    def encode(
        self, text_encoder: Any, tokenizer: Any, texts: list[str], length: int, name: str, *,
        clip_skip: int | None = None, penultimate: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Texts -> embeddings (B, `length`, C), and the encoder's first output, (B, P) of the first chunks of one that
        projects. `name` is what the texts are called in messages."""
        if self.syntax == PLAIN:
            ids = tokenize(tokenizer, texts, length, name)
            return self.encoding(text_encoder, ids, clip_skip=clip_skip, penultimate=penultimate)
        tokens = tokens_of(tokenizer, texts, _whole_chunks(length, tokenizer.model_max_length, name))
        return self._encode_chunks(text_encoder, tokens, clip_skip=clip_skip, penultimate=penultimate)

    def _encode_chunks(self, text_encoder: Any, tokens: Tokens, **how: Any) -> tuple[Tensor, Tensor]:
        """Embeddings (B, n * T, C), pooled ones of the first chunks.

        All chunks go through the encoder at once, so that weights which travel come once.
        """
        batch, count, _ = tokens.ids.shape
        hidden, first = self.encoding(text_encoder, tokens.ids.flatten(0, 1), **how)
        hidden = weighted(hidden, tokens.weights.flatten(0, 1))
        return hidden.reshape(batch, -1, hidden.shape[-1]), first[::count]


def each_once(encoding: Encode) -> Encode:
    """`encoding`, which is asked only once for the same ids of the same encoder: for the texts of one call."""
    made: dict[Any, tuple[Tensor, Tensor]] = {}

    def encode(text_encoder: Any, ids: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        key = (id(text_encoder), tuple(ids.shape), tuple(ids.flatten().tolist()), *sorted(how.items()))
        if key not in made:
            made[key] = encoding(text_encoder, ids, **how)
        return made[key]

    return encode


def _whole_chunks(length: int, most: int, name: str) -> int:
    if length % most:
        raise ConfigError(
            f"the embeddings have {length} tokens, and {name} is encoded in chunks of {most}: pass both as texts, or "
            "both as embeddings."
        )
    return length // most


def tokenize(tokenizer: Any, texts: list[str], length: int | None = None, name: str = "prompt") -> Tensor:
    """Texts -> ids (B, T), padded and cut to `length` (the tokenizer's own unless given), warning of what was cut.

    ConfigError for a `length` beyond what the encoder reads: that of embeddings which were encoded in pieces.
    """
    length, most = int(length or tokenizer.model_max_length), tokenizer.model_max_length
    if length > most:
        raise ConfigError(
            f"prompt_embeds has {length} tokens and the text encoder reads {most}, so {name} cannot be encoded at that "
            f"length: pass negative embeddings of the same shape too, such as '' encoded and repeated to {length} "
            "tokens, or guidance_scale=1."
        )
    for text in texts:
        whole = tokenizer([text], padding=False, truncation=False)["input_ids"][0]
        if len(whole) > length:
            lost = tokenizer.decode(whole[length - 1 : -1])
            warnings.warn(
                f"{name} has {len(whole)} tokens and the text encoder reads {length}; to read all, in chunks, set "
                "pipe.prompt_syntax = 'weighted' (--prompt-syntax weighted). This part was cut off and has no effect: "
                f"{lost!r}",
                stacklevel=2,
            )
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def check_clip_skip(clip_skip: Any, text_encoder: Any, *, penultimate: bool) -> None:
    """ConfigError unless `clip_skip` is None or a number of layers that the encoder can go without."""
    most = text_encoder.config.num_hidden_layers - penultimate
    whole = isinstance(clip_skip, int) and not isinstance(clip_skip, bool)
    if clip_skip is not None and not (whole and 0 <= clip_skip <= most):
        raise ConfigError(f"clip_skip={clip_skip!r}: pass 0 to {most}, the layers to leave out at the end.")
