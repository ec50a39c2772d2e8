"""Prompts of any length: cut into chunks of as many tokens as a CLIP text encoder reads.

As in AUTOMATIC1111's web UI. Each chunk has begin and end tokens of its own and is padded as a short prompt is. A
prompt that does not fit is cut after the last comma, if one is among the last 20 tokens of the chunk, else where the
chunk is full; BREAK begins a new chunk. The vectors of one textual inversion stay together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .emphasis import parse

BACKTRACK = 20
"""Tokens that may move to the next chunk, so that what stands between two commas is not torn apart."""


@dataclass
class Chunk:
    """Ids without begin and end tokens, and the weight of each."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    after_comma: int = 0
    """Where the text behind the last comma begins; 0 without one."""


@dataclass(frozen=True)
class Tokens:
    """Texts as an encoder reads them: `ids` (B, n, T), and the tokens' `weights` (B, n, T)."""

    ids: Tensor
    weights: Tensor


def chunks_of(tokenizer: Any, text: str) -> list[Chunk]:
    """A prompt in the weighted syntax as chunks of at most `model_max_length` - 2 tokens; one chunk for no text."""
    room, chunks = tokenizer.model_max_length - 2, [Chunk()]
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    sizes = getattr(tokenizer, "word_sizes", {})
    for number, section in enumerate(parse(text)):
        if number:
            chunks.append(Chunk())
        for piece in section:
            ids = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
            while ids:
                group, ids = ids[: sizes.get(ids[0], 1)], ids[sizes.get(ids[0], 1) :]
                _append(chunks, group, piece.weight, room, is_comma=group == [comma])
    return chunks if chunks[-1].ids else chunks[:-1] or chunks  # a BREAK at the end begins nothing


def _append(chunks: list[Chunk], group: list[int], weight: float, room: int, *, is_comma: bool) -> None:
    last = chunks[-1]
    if len(group) > room:
        raise ConfigError(f"an embedding of {len(group)} vectors does not fit the {room} tokens of one chunk.")
    if len(last.ids) + len(group) > room:
        start = last.after_comma
        moves = start and len(last.ids) - start < BACKTRACK and not is_comma
        chunks.append(Chunk(last.ids[start:], last.weights[start:]) if moves else Chunk())
        if moves:
            del last.ids[start:], last.weights[start:]
        last = chunks[-1]
    last.ids += group
    last.weights += [weight] * len(group)
    if is_comma:
        last.after_comma = len(last.ids)


def tokens_of(tokenizer: Any, texts: list[str], count: int) -> Tokens:
    """Prompts in the weighted syntax as `count` chunks each: those that are shorter get chunks of no text."""
    rows = [chunks_of(tokenizer, text) for text in texts]
    rows = [[*row, *(Chunk() for _ in range(count - len(row)))] for row in rows]
    length = tokenizer.model_max_length
    ids = [[_framed(tokenizer, chunk.ids, length) for chunk in row] for row in rows]
    weights = [[[1.0, *chunk.weights, *[1.0] * (length - 1 - len(chunk.weights))] for chunk in row] for row in rows]
    return Tokens(torch.tensor(ids), torch.tensor(weights))


def _framed(tokenizer: Any, ids: list[int], length: int) -> list[int]:
    padding = [tokenizer.pad_token_id] * (length - 2 - len(ids))
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding]


def weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """Embeddings (N, T, C) times their tokens' weights (N, T), at the mean that each of the N had before.

    A mean that is nothing but rounding, as of a normalisation without learned scales, is left alone. What has weights
    of 1 alone stays the same to the last bit.
    """
    changed = (weights != 1).any(dim=1).to(hidden.device)
    if not changed.any():
        return hidden
    before = hidden.float()
    after = before * weights[..., None].to(hidden.device)
    size, (old, new) = before.abs().mean((1, 2)), (each.mean((1, 2)) for each in (before, after))
    is_rounding = torch.minimum(old.abs(), new.abs()) < 1e-5 * size
    after = after * torch.where(is_rounding, 1.0, old / new)[:, None, None]
    return torch.where(changed[:, None, None], after.to(hidden.dtype), hidden)
