"""Pictures -> what is on them, from pixels alone: flat patches of palette colours and the shape each one has.

Soft edges mix two colours and may look like a third (red into yellow passes orange), so a pixel is trusted only inside
a flat patch, its *core*. Pixels between two cores are given to the nearer colour of those two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leandiffusion.core.errors import ConfigError

from .layout import PICTURE, RADII
from .scenes import COLOURS, PALETTE
from .shapes import SHAPES, Floats

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]

_FLAT = 48  # greatest range of a channel over 3x3 pixels inside a patch: above decoder noise, below any soft edge
_REACH, _LEAST_REACH = 6, 4  # how far from its core an edge may lie: in pixels of 128, and in pixels of any picture
_SPECK = 20  # patches up to so many pixels (of 128x128) are specks, not objects
_SOLID_COLOUR = 60.0  # greatest RGB distance of a patch's mean from its palette colour
_CLEAR_FIT = 0.7  # least overlap (intersection over union) with a shape to be called by its name
_CORNER, _MIXED = 0.12, 30.0  # greatest part of a shape that a soft corner takes, and RGB distance from a mixture
_PALETTE = np.array(list(PALETTE.values()), np.float32)
_SMALL_BELOW = (RADII["small"][1] + RADII[None][0]) / 2
_LARGE_ABOVE = (RADII[None][1] + RADII["large"][0]) / 2


@dataclass(frozen=True)
class Seen:
    """One patch. Place and radius are in pixels of a 128 pixel wide picture, `fit` is the overlap with `shape`, 0..1.

    `colour` or `shape` is 'unclear' where the patch is near to none of the names.
    """

    shape: str
    colour: str
    x: float
    y: float
    r: float
    fit: float

    @property
    def size(self) -> str:
        """'small', 'medium' or 'large', split halfway between the radii that are painted."""
        return "small" if self.r < _SMALL_BELOW else "large" if self.r > _LARGE_ABOVE else "medium"

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Reading:
    """What a picture shows: the colour along its border, and every patch on it, largest first."""

    background: str
    things: tuple[Seen, ...]


def read(picture: npt.NDArray[np.uint8]) -> Reading:
    """Read a picture of shape (H, W, 3), RGB 0..255, at least 32 pixels wide and high; ConfigError for any other."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or min(picture.shape[:2]) < 32:
        raise ConfigError(
            f"a picture of shape {picture.shape} and dtype {picture.dtype} cannot be read: "
            "give uint8 RGB of shape (H, W, 3), 32 pixels or more each way."
        )
    scale = picture.shape[1] / PICTURE
    pixels = picture.astype(np.float32)
    labels, background = _settle(picture, max(_LEAST_REACH, round(_REACH * scale)))
    back = np.median(pixels[labels == background], axis=0)
    patches = [
        _Patch(part, int(label), int(part.sum()), _inner_colour(pixels, part))
        for label in np.unique(labels)
        if label != background
        for part in components(labels == label)
        if part.sum() > _SPECK * scale**2
    ]
    solid: list[_Patch] = []
    for patch in sorted(patches, key=lambda patch: -patch.area):
        if not any(_is_soft_edge(patch, larger, back) for larger in solid):
            solid.append(patch)
    return Reading(COLOURS[background], tuple(_see(pixels, labels, patch, back, scale) for patch in solid))


@dataclass(frozen=True)
class _Patch:
    mask: Mask
    label: int  # palette index
    area: int
    colour: Floats  # RGB


def _inner_colour(pixels: Floats, part: Mask) -> Floats:
    """The median colour away from the edges, or of all of a patch that is too thin to have an inside."""
    inside = _spread(part, 1, np.logical_and)
    return np.median(pixels[inside if inside.sum() >= _SPECK else part], axis=0)


def _is_soft_edge(patch: _Patch, larger: _Patch, back: Floats) -> bool:
    """Whether `patch` is a blurred corner of `larger`: touching, small, its colour a mixture with the background."""
    if patch.area > _CORNER * larger.area or not (_spread(patch.mask, 2, np.logical_or) & larger.mask).any():
        return False
    side = larger.colour - back
    mixture = np.clip((patch.colour - back) @ side / max(float(side @ side), 1.0), 0, 1)
    return bool(np.linalg.norm(back + mixture * side - patch.colour) < _MIXED)


def _settle(picture: npt.NDArray[np.uint8], reach: int) -> tuple[Labels, int]:
    """The palette index of every pixel, edges resolved, and that of the background."""
    # Squared distances, less |pixel|², which is alike for all colours.
    distance = (_PALETTE**2).sum(1) - 2 * picture.astype(np.float32) @ _PALETTE.T
    nearest = distance.argmin(2).astype(np.uint8)
    border = [nearest[:2].ravel(), nearest[-2:].ravel(), nearest[:, :2].ravel(), nearest[:, -2:].ravel()]
    background = int(np.bincount(np.concatenate(border)).argmax())

    flat = (_spread(picture, 1, np.maximum) - _spread(picture, 1, np.minimum)).max(2) < _FLAT
    flat &= _spread(nearest, 1, np.maximum) == _spread(nearest, 1, np.minimum)
    labels, rivals = nearest.copy(), np.zeros(nearest.shape, np.uint8)
    closest = np.full(nearest.shape, np.inf, np.float32)
    for label in np.unique(nearest[flat]):
        near = _spread(flat & (nearest == label), reach, np.logical_or)
        better = near & (distance[:, :, label] < closest)
        closest[better] = distance[:, :, label][better]
        labels[better] = label
        rivals += near
    return np.where(rivals >= 2, labels, nearest), background


def _spread(values: npt.NDArray, reach: int, combine: np.ufunc) -> npt.NDArray:
    """Running `combine` (maximum, minimum, or) over squares of 2 reach + 1 pixels; edges count as they are."""
    for axis in (0, 1):
        padding = [(0, 0)] * values.ndim
        padding[axis] = (reach, reach)
        padded = np.pad(values, padding, mode="edge")
        length = values.shape[axis]
        rows = (padded.take(range(shift, shift + length), axis) for shift in range(2 * reach + 1))
        values = next(rows)
        for row in rows:
            values = combine(values, row)
    return values


def components(mask: Mask) -> list[Mask]:
    """The 8-connected parts of a (H, W) mask, each as a mask, found by joining the runs of neighbouring rows."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    runs = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))
    parent = list(range(len(runs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    above = 0  # the first run that may still touch the current one from the row above
    for i, (row, start, end) in enumerate(runs):
        while runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] < start):
            above += 1
        j = above
        while j < i and runs[j][0] == row - 1 and runs[j][1] <= end:
            parent[root(j)] = root(i)
            j += 1

    parts: dict[int, Mask] = {}
    for i, (row, start, end) in enumerate(runs):
        parts.setdefault(root(i), np.zeros(mask.shape, bool))[row, start:end] = True
    return list(parts.values())


def _see(pixels: Floats, labels: Labels, patch: _Patch, back: Floats, scale: float) -> Seen:
    """Name one patch: its opacity over the background, compared with every shape of the same area and centroid."""
    mask, side = patch.mask, patch.colour - back
    spans = (np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0])
    box = tuple(slice(max(int(span[0]) - 3, 0), int(span[-1]) + 4) for span in spans)
    around = _spread(mask[box], 2, np.logical_or) & (mask[box] | (labels[box] != patch.label))
    opacity = (pixels[box] - back) @ side / max(float(side @ side), 1.0)
    opacity = np.where(around, np.clip(opacity, 0, 1), 0).astype(np.float32)

    area = float(opacity.sum())
    y = (np.arange(opacity.shape[0], dtype=np.float32) + 0.5)[:, None]
    x = (np.arange(opacity.shape[1], dtype=np.float32) + 0.5)[None, :]
    centre_x, centre_y = float((opacity * x).sum()) / area, float((opacity * y).sum()) / area
    fits = {}
    for name, shape in SHAPES.items():
        ideal = shape.coverage(x - centre_x, y - centre_y, (area / shape.area) ** 0.5)
        fits[name] = float(np.minimum(opacity, ideal).sum() / np.maximum(opacity, ideal).sum())
    best = max(fits, key=lambda name: fits[name])
    named = np.linalg.norm(patch.colour - _PALETTE[patch.label]) <= _SOLID_COLOUR
    return Seen(
        shape=best if fits[best] >= _CLEAR_FIT else "unclear",
        colour=COLOURS[patch.label] if named else "unclear",
        x=(centre_x + box[1].start) / scale,
        y=(centre_y + box[0].start) / scale,
        r=(area / SHAPES[best].area) ** 0.5 / scale,
        fit=fits[best],
    )
