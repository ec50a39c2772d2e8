"""Attention in slices of heads: another backend, called for a few heads at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import AttentionBackend

HEAD_SIZE = 64
"""Of heads, where it is not told: between Stable Diffusion 1.5's 40 and 160."""


@dataclass(frozen=True)
class Sliced:
    """Runs `inner` on `heads_at_a_time` heads: 'auto' is half of them, 'max' (the most saving) one, or a number.

    What `inner` needs beyond its result shrinks in proportion; the computation and its kernel stay the same. Where a
    slice saves less than it takes, beside a kernel that keeps no scores or with few tokens, all heads are computed at
    once: several small calls would only be slower.
    """

    inner: AttentionBackend
    heads_at_a_time: int | str = "auto"

    @property
    def name(self) -> str:
        """The inner kernel's name and the slices' size."""
        return f"{self.inner.name}, sliced ({self.heads_at_a_time})"

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q (B, nh, T, hs), k and v (B, nh, S, hs) -> (B, nh, T, hs)."""
        batch, heads, queries, _ = q.shape
        step = self._worth(batch, heads, queries, k.shape[2], q.itemsize)
        if step >= heads:
            return self.inner(q, k, v)
        out = torch.empty_like(q)
        for first in range(0, heads, step):
            some = slice(first, first + step)
            out[:, some] = self.inner(q[:, some], k[:, some], v[:, some])
        return out

    def step(self, heads: int) -> int:
        """How many of so many heads are computed at a time."""
        if self.heads_at_a_time == "auto":
            return max(heads // 2, 1)
        return 1 if self.heads_at_a_time == "max" else int(self.heads_at_a_time)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return self.inner.why_not(device, dtype)

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        step = self._worth(batch, heads, queries, keys, itemsize)
        return self.inner.workspace_bytes(batch, step, queries, keys, itemsize)

    def _worth(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        """How many heads to compute at a time: as many as asked for if what is not there then takes more than the other
        heads' queries, keys, values and result, as scores do and copies of some of these do not."""
        step = min(self.step(heads), heads)
        whole, part = (self.inner.workspace_bytes(batch, n, queries, keys, itemsize) for n in (heads, step))
        return step if whole - part > 2 * batch * (heads - step) * (queries + keys) * HEAD_SIZE * itemsize else heads
