"""What every attention backend offers."""

from __future__ import annotations

from typing import Protocol

import torch


class AttentionBackend(Protocol):
    """softmax(q k^T / sqrt(hs)) v (Vaswani et al. 2017, eq. 1) under some trade-off between memory and speed."""

    @property
    def name(self) -> str:
        """The name under which it is registered."""
        ...

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q (B, nh, T, hs), k and v (B, nh, S, hs) -> (B, nh, T, hs)."""
        ...

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Reasons why this backend cannot run there, worded for the user; empty when it can."""
        ...

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        """Bytes held beyond q, k, v and the result at the worst moment."""
        ...
