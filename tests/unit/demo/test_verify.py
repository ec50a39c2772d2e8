"""The verifier: right pictures pass, soft ones too, and every single wrong attribute is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from tools.demo_world.pixels import Reading, Seen, components, read
from tools.demo_world.render import render
from tools.demo_world.scenes import (
    COLOURS,
    PALETTE,
    RELATIONS,
    Description,
    Placed,
    Scene,
    Thing,
    description_of,
    parse_caption,
    sample_scene,
)
from tools.demo_world.shapes import SHAPES
from tools.demo_world.verify import judge, verify

from leandiffusion.core.errors import ConfigError


def other(rng: np.random.Generator, names, name: str | None) -> str:
    rest = [n for n in names if n != name]
    return rest[rng.integers(len(rest))]


def wrong_descriptions(description: Description, rng: np.random.Generator) -> Iterator[tuple[str, Description]]:
    """`description` with exactly one attribute changed, for every attribute it has."""

    def put(i: int, thing: Thing) -> Description:
        return replace(description, things=(*description.things[:i], thing, *description.things[i + 1 :]))

    yield "background", replace(description, background=other(rng, COLOURS, description.background))
    for i, thing in enumerate(description.things):
        yield "colour", put(i, replace(thing, colour=other(rng, COLOURS, thing.colour)))
        yield "shape", put(i, replace(thing, shape=other(rng, SHAPES, thing.shape)))
        if description.relation is None:
            yield "size", put(i, replace(thing, size=other(rng, ("small", "large"), thing.size)))
    if description.relation is not None:
        yield "relation", replace(description, relation=other(rng, RELATIONS, description.relation))
        yield "swapped", replace(description, things=description.things[::-1])
        yield "one too many", Description(description.things[:1], None, description.background)


def check(count: int, seed: int, change, least: float) -> None:
    """Of `count` scenes the part `least` is judged right, and of their changed descriptions the part `least` wrong."""
    rng = np.random.default_rng(seed)
    accepted, rejected = [], []
    for _ in range(count):
        scene = sample_scene(rng, split="all", pair_probability=0.5)
        reading, description = read(change(render(scene), rng)), description_of(scene)
        accepted.append(judge(reading, description).fully_right)
        rejected += [not judge(reading, wrong).fully_right for _, wrong in wrong_descriptions(description, rng)]
    assert np.mean(accepted) >= least
    assert np.mean(rejected) >= least


def test_clean_pictures_are_judged_without_error():
    check(500, 1, lambda picture, rng: picture, 1.0)


def test_soft_noisy_pictures_are_judged_right(soften):
    """Blur of one pixel and noise of 6 levels, about what a small decoder does; the bound leaves 1 in 200."""
    check(400, 2, soften, 0.995)


@pytest.mark.slow
def test_clean_pictures_are_judged_without_error_at_length():
    check(6000, 3, lambda picture, rng: picture, 1.0)


@pytest.mark.slow
def test_soft_noisy_pictures_are_judged_right_at_length(soften):
    check(6000, 4, soften, 0.995)


@pytest.mark.parametrize(("side", "sigma", "least"), [(64, 0.6, 0.99), (128, 2.0, 0.98), (192, 1.5, 0.99)])
def test_other_sizes_and_more_blur(soften, side, sigma, least):
    """Bounds are one or two in a hundred: at 64 pixels, or under a blur of 2, tips of small stars are a pixel wide."""
    rng, right = np.random.default_rng(side), []
    for _ in range(120):
        scene = sample_scene(rng, split="all")
        right.append(verify(soften(render(scene, side), rng, sigma=sigma), description_of(scene)).fully_right)
    assert np.mean(right) >= least


RED_CIRCLE = Scene((Placed(Thing("circle", "red"), 60.0, 66.0, 28.0),), None, "blue")


def scribble(scene: Scene, rows: slice, columns: slice, colour: str) -> np.ndarray:
    picture = render(scene).copy()
    picture[rows, columns] = PALETTE[colour]
    return picture


@pytest.mark.parametrize(
    ("rows", "columns", "colour"),
    [
        (slice(8, 14), slice(8, 14), "green"),  # a dot
        (slice(10, 12), slice(20, 100), "white"),  # a line too thin to have an inside
        (slice(100, 128), slice(0, 128), "yellow"),  # a second background
        (slice(62, 70), slice(56, 64), "black"),  # a dot on the object
    ],
)
def test_what_was_not_asked_for_is_a_fault(rows, columns, colour):
    picture = scribble(RED_CIRCLE, rows, columns, colour)
    verdict = verify(picture, description_of(RED_CIRCLE))
    assert not verdict.fully_right
    assert not verdict.count_ok


def test_a_few_stray_pixels_are_no_fault():
    assert verify(scribble(RED_CIRCLE, slice(8, 12), slice(8, 12), "green"), description_of(RED_CIRCLE)).fully_right


def test_a_ring_needs_its_hole_and_a_circle_must_not_have_one():
    ring = Description((Thing("ring", "red"),), None, "blue")
    verdict = verify(render(RED_CIRCLE), ring)
    assert not verdict.shapes_ok
    assert verdict.colours_ok
    hollow = Scene((Placed(Thing("ring", "red"), 60.0, 66.0, 28.0),), None, "blue")
    assert verify(render(hollow), ring).fully_right
    assert not verify(render(hollow), description_of(RED_CIRCLE)).fully_right


def test_a_smear_has_no_clear_shape():
    picture = scribble(Scene((), None, "white"), slice(60, 66), slice(10, 118), "red")
    (seen,) = read(picture).things
    assert (seen.shape, seen.colour) == ("unclear", "red")


def test_a_colour_off_the_palette_is_unclear():
    picture = np.full((128, 128, 3), 250, np.uint8)
    picture[40:90, 40:90] = (120, 120, 120)
    (seen,) = read(picture).things
    assert (seen.shape, seen.colour) == ("square", "unclear")


def test_edges_that_pass_a_third_colour_make_no_object(soften):
    """Red melts into yellow through orange; with an orange neighbour the edge must still be no object."""
    things = Placed(Thing("star", "red"), 34.0, 60.0, 22.0), Placed(Thing("ring", "orange"), 94.0, 66.0, 20.0)
    scene = Scene(things, "left of", "yellow")
    for sigma in (1.0, 2.0):
        picture = soften(render(scene), np.random.default_rng(0), sigma=sigma)
        assert verify(picture, description_of(scene)).fully_right


@pytest.mark.parametrize("level", [0, 127, 255])
def test_an_empty_picture_misses_everything(level):
    description = parse_caption("a red circle above a blue square on a green background")
    assert description is not None
    verdict = verify(np.full((96, 96, 3), level, np.uint8), description)
    assert [match.found for match in verdict.matches] == [None, None]
    assert not any((verdict.fully_right, verdict.count_ok, verdict.colours_ok, verdict.relation_ok))


def test_noise_is_read_without_an_error():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert not verify(noise, description_of(RED_CIRCLE)).fully_right


def test_what_the_prompt_leaves_open_is_not_judged():
    picture = render(Scene((Placed(Thing("star", "green", "small"), 40.0, 40.0, 16.0),), None, "white"))
    for text in ("a green star", "a small green star", "a green star on a white background"):
        description = parse_caption(text)
        assert description is not None
        assert verify(picture, description).fully_right


def test_two_things_without_a_relation_may_stand_anyhow():
    description = parse_caption("a red circle and a blue square on a white background")
    assert description is not None
    seen = Seen("circle", "red", 90.0, 90.0, 20.0, 1.0), Seen("square", "blue", 30.0, 20.0, 18.0, 1.0)
    assert judge(Reading("white", seen), description).fully_right
    assert judge(Reading("white", seen[::-1]), description).fully_right


def test_reasons_name_what_is_wrong():
    things = Placed(Thing("circle", "red"), 64.0, 30.0, 20.0), Placed(Thing("square", "blue"), 70.0, 90.0, 20.0)
    picture = render(Scene(things, "above", "white"))
    description = parse_caption("a red circle below a green square on a black background")
    assert description is not None
    assert verify(picture, description).reasons == (
        "the background is white, not black",
        "instead of the green square there is a small blue square",
        "the first thing is above the second, not below it",
    )
    single = parse_caption("a red circle on a white background")
    assert single is not None
    assert verify(picture, single).reasons == ("a small blue square was not asked for",)


def test_same_colour_is_matched_by_shape():
    things = Placed(Thing("ring", "red"), 30.0, 60.0, 20.0), Placed(Thing("cross", "red"), 90.0, 66.0, 20.0)
    scene = Scene(things, "left of", "white")
    assert verify(render(scene), description_of(scene)).fully_right
    assert not verify(render(scene), replace(description_of(scene), relation="right of")).fully_right


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((128, 128), np.uint8),
        np.zeros((128, 128, 4), np.uint8),
        np.zeros((128, 128, 3), np.float32),
        np.zeros((16, 128, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(picture)


def flood(mask: np.ndarray) -> set[frozenset[tuple[int, int]]]:
    """The 8-connected parts by flooding, one pixel at a time: slow and plain."""
    left = {(int(i), int(j)) for i, j in zip(*np.nonzero(mask), strict=True)}
    parts = set()
    while left:
        stack, part = [left.pop()], set()
        while stack:
            i, j = stack.pop()
            part.add((i, j))
            near = {(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)} & left
            left -= near
            stack += near
        parts.add(frozenset(part))
    return parts


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.8])
def test_components_agree_with_flooding(density):
    rng = np.random.default_rng(int(10 * density))
    for shape in ((40, 40), (1, 30), (30, 1), (25, 60)):
        mask = rng.random(shape) < density
        found = {
            frozenset((int(i), int(j)) for i, j in zip(*np.nonzero(part), strict=True)) for part in components(mask)
        }
        assert found == flood(mask)
    assert components(np.zeros((5, 5), bool)) == []
