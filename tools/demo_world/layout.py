"""Where shapes stand: radii and centroids, drawn at random, fully inside the picture and clear of each other."""

from __future__ import annotations

import numpy as np

from .shapes import SHAPES

PICTURE = 128
"""Side of a picture in pixels; places and radii are measured in it."""
RADII: dict[str | None, tuple[float, float]] = {
    None: (22, 33),
    "small": (14, 19),
    "large": (36, 46),
}
"""Radii in pixels of a single shape, by size word. The gaps between them keep the words apart."""
PAIR_RADII = (15, 24)

_MARGIN = 4
_GAP, _WIDE_GAP = 6, 36  # least and greatest clear space between two shapes
_SLANT = 0.4  # greatest offset across the relation's axis, as a part of the distance along it


def place_single(rng: np.random.Generator, shape: str, size: str | None) -> tuple[float, float, float]:
    """(x, y, radius) of one shape, with a mild pull to the middle."""
    r = _uniform(rng, RADII[size])
    centre = []
    for axis in "xy":
        before, after = _reach(shape, r, axis)
        centre.append(_between(rng, _MARGIN + before, PICTURE - _MARGIN - after))
    return centre[0], centre[1], r


def place_pair(rng: np.random.Generator, shapes: tuple[str, str], axis: str) -> list[tuple[float, float, float]]:
    """(x, y, radius) of two shapes, the first one further left (axis 'x') or further up (axis 'y').

    Along the axis there are at least 6 clear pixels between them; across it the offset is the lesser one.
    """
    other = "x" if axis == "y" else "y"
    r, s = _uniform(rng, PAIR_RADII), _uniform(rng, PAIR_RADII)

    before, between = _reach(shapes[0], r, axis)
    between_too, after = _reach(shapes[1], s, axis)
    room = PICTURE - 2 * _MARGIN - before - between - between_too - after
    distance = between + between_too + _uniform(rng, (_GAP, min(room, _WIDE_GAP)))
    start = _between(rng, _MARGIN + before, PICTURE - _MARGIN - after - distance)

    before, after = _reach(shapes[0], r, other)
    before_too, after_too = _reach(shapes[1], s, other)
    slant = _SLANT * distance * _uniform(rng, (-1, 1))
    low = _MARGIN + max(before, before_too - slant)
    side = _between(rng, low, PICTURE - _MARGIN - max(after, after_too + slant))

    main, cross = (start, start + distance), (side, side + slant)
    x, y = (main, cross) if axis == "x" else (cross, main)
    return [(x[0], y[0], r), (x[1], y[1], s)]


def _reach(shape: str, r: float, axis: str) -> tuple[float, float]:
    """How far a shape extends before and after its centroid, in pixels."""
    geometry = SHAPES[shape]
    return (geometry.side * r, geometry.side * r) if axis == "x" else (geometry.up * r, geometry.down * r)


def _uniform(rng: np.random.Generator, span: tuple[float, float]) -> float:
    return span[0] + (span[1] - span[0]) * rng.random()


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.beta(1.5, 1.5)
