"""Noise that does not depend on where the steps of a sampler lie: increments of one Brownian path per seed.

The path is refined by halves (Lévy's construction; Li et al., arXiv 2001.01328, section 4): the value in the middle of
an interval is drawn given those at its ends, from a seed that follows from the interval's place in the tree. Seeds and
rounding are those of torchsde's BrownianInterval with halfway_tree=True, so that one seed means the same noise there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add

import numpy as np
import torch

from ..device.names import HOST

DIGITS = 6  # of the times at which the path is known
POOL = 24  # words of numpy's pool of entropy


class BrownianPath:
    """W(t) for t from `start` to `end` with entries of `shape`, by `seed` alone: nothing is stored but its ends.

    Drawn on the CPU in `dtype` and added up in float32 at least, so that a seed means the same on every device. An
    increment takes two draws of `shape` for each halving, about 20 for each end of it.
    """

    def __init__(self, shape: Sequence[int], start: float, end: float, seed: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype, self.seed = tuple(shape), dtype, seed
        self.start, self.end = start, end
        whole = np.random.SeedSequence(seed, pool_size=POOL).generate_state(1)[0]
        self._whole = self._draw(whole) * math.sqrt(end - start)

    def increment(self, start: float, end: float) -> torch.Tensor:
        """W(end) - W(start) on the CPU, where start <= end; times outside the path are taken for its ends."""
        start, end = (round(min(max(t, self.start), self.end), DIGITS) for t in (start, end))
        if start == end:
            return torch.zeros_like(self._whole)
        whole = _Interval(round(self.start, DIGITS), round(self.end, DIGITS), 0, 0)
        return reduce(add, self._pieces(whole, self._whole, start, end))

    def _pieces(self, piece: _Interval, w: torch.Tensor, start: float, end: float) -> Iterator[torch.Tensor]:
        """The increments over the fewest intervals of the tree below `piece`, over which it is `w`, that make up start
        … end."""
        if (piece.start, piece.end) == (start, end):
            yield w
            return
        left, right = piece.halves()
        seeds = np.random.SeedSequence(self.seed, spawn_key=(piece.place, piece.depth), pool_size=POOL)
        before, after = left.end - left.start, right.end - right.start
        share = 1 / (piece.end - piece.start)
        w_left = before * w * share + math.sqrt(before * after * share) * self._draw(seeds.generate_state(1)[0])
        if start < left.end:
            yield from self._pieces(left, w_left, start, min(end, left.end))
        if end > left.end:
            yield from self._pieces(right, w - w_left, max(start, left.end), end)

    def _draw(self, seed: int) -> torch.Tensor:
        generator = torch.Generator(HOST).manual_seed(int(seed))
        noise = torch.randn(self.shape, generator=generator, dtype=self.dtype)
        return noise.to(torch.promote_types(self.dtype, torch.float32))


class _Interval:
    """An interval of the tree: its ends, and which one it is among those of its depth."""

    __slots__ = ("depth", "end", "place", "start")

    def __init__(self, start: float, end: float, place: int, depth: int) -> None:
        self.start, self.end, self.place, self.depth = start, end, place, depth

    def halves(self) -> tuple[_Interval, _Interval]:
        middle = round(0.5 * (self.end + self.start), DIGITS)
        deeper = self.depth + 1
        return (
            _Interval(self.start, middle, 2 * self.place, deeper),
            _Interval(middle, self.end, 2 * self.place + 1, deeper),
        )
