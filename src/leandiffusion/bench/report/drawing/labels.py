"""Names beside points of a plot, where they cover each other least."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

DISTANCES = (7, 14, 24, 38, 54, 72)
"""From a point to the edge of its name, in typographic points."""

DIRECTIONS = [(math.cos(a), math.sin(a)) for a in (0, math.pi, *(k * math.pi / 8 for k in range(1, 16) if k != 8))]
LINE_FROM = 24
"""Names this far away are tied to their point by a line."""

Box = tuple[float, float, float, float]


def place_labels(
    axes: Any, points: Sequence[tuple[float, float]], texts: Sequence[str], colors: Sequence[str], lines: Sequence[Box]
) -> None:
    """Write each text beside its point, in the axes, clear of `lines`: (left, bottom, right, top), all in data units.

    Call it last: limits must not move after it.
    """
    figure = axes.figure
    scale = figure.dpi / 72
    spots = [tuple(axes.transData.transform(point)) for point in points]
    markers = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in spots]
    frame = axes.get_window_extent()
    placed = markers + [_line(axes, line) for line in lines]
    order = sorted(range(len(texts)), key=lambda i: -_crowd(i, spots, 90 * scale))
    for i in order:
        text = textwrap.fill(texts[i], 31, break_on_hyphens=False)
        width, height = _extent(axes, text)
        best = min(
            ((d * scale, way) for d in DISTANCES for way in DIRECTIONS),
            key=lambda choice: _cost(_box(spots[i], choice, width, height), choice[0], placed, frame.extents),
        )
        box = _box(spots[i], best, width, height)
        placed.append(box)
        _write(axes, text, points[i], spots[i], box, colors[i], best[0] >= LINE_FROM * scale)


def _crowd(i: int, spots: Sequence[Any], reach: float) -> int:
    """How many points lie near: those in a crowd choose first."""
    return sum(math.dist(spots[i], other) < reach for other in spots)


def _line(axes: Any, line: Box) -> Box:
    """Its box in pixels, with some air."""
    (left, bottom), (right, top) = axes.transData.transform((line[:2], line[2:]))
    return left - 4, bottom - 4, right + 4, top + 4


def _extent(axes: Any, text: str) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    drawn = axes.text(0, 0, text, fontsize=10)
    box = drawn.get_window_extent(axes.figure.canvas.get_renderer())
    drawn.remove()
    return box.width, box.height


def _box(spot: tuple[float, float], choice: tuple[float, tuple[float, float]], width: float, height: float) -> Box:
    """The text's box when its nearest edge is so far away in that direction."""
    distance, (dx, dy) = choice
    x = spot[0] + dx * (distance + width / 2)
    y = spot[1] + dy * (distance + height / 2)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _cost(box: Box, distance: float, taken: Sequence[Box], frame: Any) -> float:
    """What a place is worth: covering something is worst, then leaving the axes, then being far away."""
    inside = _overlap(box, tuple(frame))
    area = (box[2] - box[0]) * (box[3] - box[1])
    return 10 * sum(_overlap(_wider(box), other) for other in taken) + 20 * (area - inside) + 2 * distance


def _wider(box: Box) -> Box:
    return box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _write(axes: Any, text: str, point: Any, spot: Any, box: Box, color: str, tied: bool) -> None:
    scale = axes.figure.dpi / 72
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    line = {"arrowstyle": "-", "color": color, "alpha": 0.45, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 5}
    axes.annotate(
        text, point, [(m - s) / scale for m, s in zip(middle, spot, strict=True)], textcoords="offset points",
        ha="center", va="center", fontsize=10, color=color, arrowprops=line if tied else None, zorder=5,
    )  # fmt: skip
