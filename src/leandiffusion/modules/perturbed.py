"""Self-attention that some samples of a batch go without (perturbed-attention guidance: Ahn et al. 2024, sec. 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .transformer import Attention


@dataclass(frozen=True)
class Perturbed:
    """In these layers the last `rows` samples of a batch attend to themselves alone: each token gets its own value."""

    layers: frozenset[Attention]
    rows: int

    def of(self, count: int, taken: list[int]) -> Perturbed:
        """For a part of a batch of `count`: its rows by number, in order."""
        return Perturbed(self.layers, sum(row >= count - self.rows for row in taken))

    def attend(self, backend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, nh, T, hs) each -> (B, nh, T, hs): by `backend`, but the values themselves in the last rows."""
        others = len(v) - self.rows
        if others in (0, len(v)):
            return backend(q, k, v) if others else v
        return torch.cat([backend(q[:others], k[:others], v[:others]).to(v.dtype), v[others:]])
