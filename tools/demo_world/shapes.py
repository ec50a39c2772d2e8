"""The six shapes, each as a signed distance and the figures that follow from it.

A shape of radius r is centred on its centroid. The factors are chosen so that equal radii look about equally heavy:
areas lie between 1.9 r² (triangle, star) and 3.2 r² (square, circle), and no part reaches further than 1.22 r.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Shape:
    """Geometry in multiples of the radius: y grows downwards, the origin is the centroid.

    `distance(x, y, r)` takes broadcastable coordinates in pixels, (1, w) and (h, 1), and returns (h, w): below zero
    inside, above outside, exact to a fraction of a pixel near the edge (corners are not rounded).
    """

    distance: Callable[[Floats, Floats, float], Floats]
    up: float
    down: float
    side: float
    area: float

    def coverage(self, x: Floats, y: Floats, r: float) -> Floats:
        """How much of each unit pixel the shape covers, 0..1: the distance clipped to one pixel."""
        covered = self.distance(x, y, r)
        np.subtract(0.5, covered, out=covered)
        return np.clip(covered, 0.0, 1.0, out=covered)


_SQUARE = 0.9  # half of a side
_TRIANGLE = 1.2  # circumradius
_STAR, _STAR_NOTCH = 1.22, 1.22 * 0.45  # radii of the tips and of the notches between them
_RING, _RING_HOLE = 1.05, 0.55  # outer and inner radius
_CROSS, _CROSS_ARM = 1.05, 0.37  # half of the length and half of the width of an arm
_SIN36, _COS36 = math.sin(math.pi / 5), math.cos(math.pi / 5)
_SIN60 = math.sin(math.pi / 3)


def _circle(x: Floats, y: Floats, r: float) -> Floats:
    return np.sqrt(x * x + y * y) - r


def _square(x: Floats, y: Floats, r: float) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - _SQUARE * r


def _triangle(x: Floats, y: Floats, r: float) -> Floats:
    """One corner up. The inradius of an equilateral triangle is half of its circumradius."""
    return np.maximum(_SIN60 * np.abs(x) - 0.5 * y, y) - 0.5 * _TRIANGLE * r


def _star(x: Floats, y: Floats, r: float) -> Floats:
    """Five tips, one up. Mirrors fold the plane into the wedge that holds the upper tip, where the edge is one line."""
    x, y = np.abs(x), -y
    for mirror_x, mirror_y in ((_COS36, -_SIN36), (-_COS36, -_SIN36)):
        excess = np.maximum(mirror_x * x + mirror_y * y, 0.0)
        excess *= 2.0
        x, y = x - mirror_x * excess, y - mirror_y * excess
    normal_x, normal_y = _STAR - _STAR_NOTCH * _COS36, _STAR_NOTCH * _SIN36
    length = math.hypot(normal_x, normal_y)
    return (normal_x / length) * np.abs(x) + (normal_y / length) * (y - _STAR * r)


def _ring(x: Floats, y: Floats, r: float) -> Floats:
    middle, half_band = (_RING + _RING_HOLE) / 2, (_RING - _RING_HOLE) / 2
    return np.abs(np.sqrt(x * x + y * y) - middle * r) - half_band * r


def _cross(x: Floats, y: Floats, r: float) -> Floats:
    x, y = np.abs(x), np.abs(y)
    long, wide = _CROSS * r, _CROSS_ARM * r
    return np.minimum(np.maximum(x - long, y - wide), np.maximum(x - wide, y - long))


SHAPES: dict[str, Shape] = {
    "circle": Shape(_circle, 1.0, 1.0, 1.0, math.pi),
    "square": Shape(_square, _SQUARE, _SQUARE, _SQUARE, 4 * _SQUARE**2),
    "triangle": Shape(_triangle, _TRIANGLE, _TRIANGLE / 2, _TRIANGLE * _SIN60, 1.5 * _SIN60 * _TRIANGLE**2),
    "star": Shape(_star, _STAR, _STAR * _COS36, _STAR * math.sin(0.4 * math.pi), 5 * _STAR * _STAR_NOTCH * _SIN36),
    "ring": Shape(_ring, _RING, _RING, _RING, math.pi * (_RING**2 - _RING_HOLE**2)),
    "cross": Shape(_cross, _CROSS, _CROSS, _CROSS, 4 * _CROSS_ARM * (2 * _CROSS - _CROSS_ARM)),
}
