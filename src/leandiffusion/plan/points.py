"""What was measured at a few sizes, and what that says of those in between."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

Points = tuple[tuple[float, float], ...]
"""(size, what was measured there), by size."""


def lift(points: Iterable[tuple[float, float]]) -> Points:
    """Rates by operations per byte, corrected upwards where noise shows: with more operations per byte a rate is not
    lower, and it grows no faster than they do, since no more bytes are moved in the time."""
    found = sorted(points)
    for i in range(1, len(found)):
        found[i] = (found[i][0], max(found[i][1], found[i - 1][1]))
    for i in reversed(range(len(found) - 1)):
        size, (above, rate) = found[i][0], found[i + 1]
        found[i] = (size, max(found[i][1], rate * size / above))
    return tuple(found)


def sink(points: Iterable[tuple[float, float]]) -> Points:
    """Bytes/s by bytes, corrected upwards likewise: larger operations leave the cache, so they are not faster."""
    found = sorted(points)
    for i in reversed(range(len(found) - 1)):
        found[i] = (found[i][0], max(found[i][1], found[i + 1][1]))
    return tuple(found)


def no_less(points: Points, others: Points) -> Points:
    """Rates at the same sizes, where `others` prove what is possible."""
    return tuple((size, max(rate, other)) for (size, rate), (_, other) in zip(points, others, strict=True))


def product_rate(points: Points, intensity: float) -> float:
    """FLOP/s at so many FLOP per byte. Below the first point what limits is memory, so it falls in proportion."""
    first, rate = points[0]
    return rate * intensity / first if intensity < first else rate_at(points, intensity)


def rate_at(points: Points, size: float) -> float:
    """Between two points along a line in logarithms; outside that of the nearest."""
    if size <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if size <= right:
            share = math.log(size / left) / math.log(right / left)
            return low ** (1 - share) * high**share
    return points[-1][1]
