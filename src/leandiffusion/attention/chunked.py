"""Attention in chunks of queries: plain products, memory linear in their number, softmax in float32."""

from __future__ import annotations

import torch

from . import backends

ROWS = 256
"""Queries at a time: their scores stay in a CPU's cache, and the products are still large."""


class Chunked:
    """For CPUs: matrix products of the weights' dtype around a float32 softmax (Rabe & Staats 2021, queries only)."""

    name = "chunked"

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        keys = (k * k.shape[-1] ** -0.5).transpose(-1, -2)
        for first in range(0, q.shape[2], ROWS):
            rows = slice(first, first + ROWS)
            scores = q[:, :, rows] @ keys
            out[:, :, rows] = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
        return out

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        scores = batch * heads * min(queries, ROWS) * keys
        return scores * (2 * itemsize + 4)  # scores, their softmax in float32, and that in the weights' dtype


backends.add("chunked", Chunked())
