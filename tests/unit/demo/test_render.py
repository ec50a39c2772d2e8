"""The renderer against Pillow's polygons and against the figures that the shapes declare."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tools.demo_world.render import render
from tools.demo_world.scenes import PALETTE, Placed, Scene, Thing, sample_scene
from tools.demo_world.shapes import SHAPES

from leandiffusion.core.errors import ConfigError

FINE = 8  # the reference is drawn this many times larger, then averaged


def regular(corners: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners of a polygon around the origin, the first one up, radii in turn."""
    turns = [2 * math.pi * i / corners for i in range(corners)]
    return [(radii[i % len(radii)] * math.sin(t), -radii[i % len(radii)] * math.cos(t)) for i, t in enumerate(turns)]


POLYGONS = {
    "circle": [regular(720, (1.0,))],
    "square": [[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]],
    "triangle": [regular(3, (1.2,))],
    "star": [regular(10, (1.22, 1.22 * 0.45))],
    "ring": [regular(720, (1.05,)), regular(720, (0.55,))],
    "cross": [
        [(-a, -b), (a, -b), (a, b), (-a, b)] for a, b in ((1.05, 0.37), (0.37, 1.05))
    ],
}  # fmt: skip


def reference(name: str, x: float, y: float, r: float) -> np.ndarray:
    """Coverage (128, 128) by Pillow's polygon filling, 64 samples for each pixel."""
    image = Image.new("L", (128 * FINE, 128 * FINE))
    for i, corners in enumerate(POLYGONS[name]):
        points = [(FINE * (x + r * u) - 0.5, FINE * (y + r * v) - 0.5) for u, v in corners]
        ImageDraw.Draw(image).polygon(points, fill=0 if name == "ring" and i else 1)
    return np.asarray(image, np.float32).reshape(128, FINE, 128, FINE).mean((1, 3))


def white_on_black(name: str, x: float, y: float, r: float) -> np.ndarray:
    """Coverage (128, 128) as `render` paints it."""
    picture = render(Scene((Placed(Thing(name, "white"), x, y, r),), None, "black"))[:, :, 0].astype(np.float32)
    return (picture - 16) / (250 - 16)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("x", "y", "r"), [(64.0, 64.0, 40.0), (40.3, 70.8, 15.4), (61.5, 59.1, 28.7)])
def test_shapes_match_polygons(name, x, y, r):
    """A pixel at a sharp corner may differ, since distances do not round corners; all others only by sampling."""
    difference = np.abs(white_on_black(name, x, y, r) - reference(name, x, y, r))
    assert difference.mean() < 0.003
    assert (difference > 0.2).sum() <= 12
    assert difference.max() < 0.75


@pytest.mark.parametrize("name", SHAPES)
def test_declared_geometry_holds(name):
    x, y, r = 62.3, 66.1, 41.0
    coverage, shape = white_on_black(name, x, y, r), SHAPES[name]
    assert coverage.sum() == pytest.approx(shape.area * r**2, rel=0.01)  # rounding to 8 bits and corners
    columns, rows = np.arange(128) + 0.5, np.arange(128) + 0.5
    assert (coverage.sum(0) * columns).sum() / coverage.sum() == pytest.approx(x, abs=0.05)
    assert (coverage.sum(1) * rows).sum() / coverage.sum() == pytest.approx(y, abs=0.05)
    filled_rows, filled_columns = np.nonzero(coverage.max(1) > 0.25)[0], np.nonzero(coverage.max(0) > 0.25)[0]
    assert filled_rows[0] == pytest.approx(y - shape.up * r, abs=1.6)
    assert filled_rows[-1] + 1 == pytest.approx(y + shape.down * r, abs=1.6)
    assert filled_columns[0] == pytest.approx(x - shape.side * r, abs=1.6)
    assert filled_columns[-1] + 1 == pytest.approx(x + shape.side * r, abs=1.6)


def test_equal_radii_weigh_about_the_same():
    areas = [shape.area for shape in SHAPES.values()]
    assert max(areas) < 1.8 * min(areas)


def test_colours_are_flat_and_exact():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = sample_scene(rng)
        picture = render(scene)
        assert picture.shape == (128, 128, 3)
        assert picture.dtype == np.uint8
        colours = [PALETTE[scene.background], *(PALETTE[thing.colour] for thing in scene.things)]
        flat = np.any([(picture == colour).all(2) for colour in colours], axis=0)
        assert flat.mean() > 0.93  # the rest are edges
        for placed in scene.placed:
            if placed.thing.shape != "ring":
                assert tuple(picture[int(placed.y), int(placed.x)]) == PALETTE[placed.thing.colour]


def test_scenes_scale_with_the_picture():
    scene = sample_scene(np.random.default_rng(3))
    large = render(scene, 256).reshape(128, 2, 128, 2, 3).mean((1, 3))
    difference = np.abs(large - render(scene))
    assert difference.mean() < 0.2  # of 255: only edge pixels, which two ways of averaging round differently


def test_a_shape_that_reaches_outside_is_cut():
    picture = render(Scene((Placed(Thing("square", "red"), 0.0, 128.0, 30.0),), None, "white"))
    assert tuple(picture[127, 0]) == PALETTE["red"]
    assert tuple(picture[90, 40]) == PALETTE["white"]


def test_tiny_pictures_are_refused():
    with pytest.raises(ConfigError, match="side=8"):
        render(sample_scene(np.random.default_rng(0)), 8)
