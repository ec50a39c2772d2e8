"""Attention written out: two products and a softmax. The reference for the other backends."""

from __future__ import annotations

import torch

from . import backends


class Plain:
    """Keeps the whole (T, S) score matrix, so memory grows with the square of the picture's area."""

    name = "plain"

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(dim=-1) @ v

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        return 2 * batch * heads * queries * keys * itemsize  # scores and their softmax live together


backends.add("plain", Plain())
