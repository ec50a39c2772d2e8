"""Scores over many pictures, and the prompts that training never saw."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tools.demo_world.render import render
from tools.demo_world.scenes import (
    Description,
    Placed,
    Scene,
    Thing,
    combination,
    description_of,
    is_held_out,
    parse_caption,
    sample_scene,
)
from tools.demo_world.score import held_out_descriptions, score

from leandiffusion.core.errors import ConfigError


def single(shape: str, colour: str, background: str) -> Scene:
    return Scene((Placed(Thing(shape, colour), 64.0, 64.0, 26.0),), None, background)


def test_right_pictures_score_full():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, split="all") for _ in range(60)]
    report = score([render(scene) for scene in scenes], [description_of(scene) for scene in scenes])
    assert report.singles.fraction == report.pairs.fraction == 1.0
    assert report.singles.of + report.pairs.of == 60
    assert all(share.fraction == 1.0 for share in report.attributes.values())
    assert report.attributes["relation"].of == report.pairs.of
    assert report.attributes["sizes"].of == sum(scene.things[0].size is not None for scene in scenes)
    assert all(wanted == found for wanted, found in (*report.shapes, *report.colours))


def test_faults_are_counted_where_they_belong():
    drawn = [single("circle", "red", "white"), single("square", "red", "white"), single("star", "blue", "black")]
    asked = [single("circle", "red", "white"), single("circle", "red", "white"), single("star", "green", "white")]
    report = score([render(scene) for scene in drawn], [description_of(scene) for scene in asked])
    assert (report.singles.right, report.singles.of) == (1, 3)
    assert {name: share.right for name, share in report.attributes.items()} == {
        "background": 2, "count": 3, "colours": 2, "shapes": 2, "sizes": 0, "relation": 0,
    }  # fmt: skip
    assert report.shapes == {("circle", "circle"): 1, ("circle", "square"): 1, ("star", "star"): 1}
    assert report.colours == {("red", "red"): 2, ("green", "blue"): 1}
    assert math.isnan(report.pairs.fraction)


def test_what_was_not_drawn_is_missing():
    description = parse_caption("a red circle above a blue star on a white background")
    assert description is not None
    report = score([render(single("circle", "red", "white"))], [description])
    assert report.pairs.right == 0
    assert report.shapes == {("circle", "circle"): 1, ("star", "missing"): 1}
    assert "missing" in report.table()


def test_the_table_is_markdown_with_whole_rows():
    report = score([render(single("circle", "red", "white"))], [description_of(single("ring", "red", "white"))])
    lines = report.table().splitlines()
    assert "| one thing, fully right | 0.0% (0 of 1) |" in lines
    assert "| two things, fully right | none asked |" in lines
    for part in report.table().split("\n\n"):
        assert len({line.count("|") for line in part.splitlines()}) == 1
    ring = next(line for line in lines if line.startswith("| ring |"))
    assert [cell.strip() for cell in ring.split("|")[2:-1]] == ["1", "", "", "", "", ""]


def test_numbers_must_agree():
    with pytest.raises(ConfigError, match="1 pictures for 2 descriptions"):
        score([render(single("circle", "red", "white"))], [description_of(single("ring", "red", "white"))] * 2)


def test_held_out_descriptions_are_held_out_and_half_of_each_kind():
    descriptions = held_out_descriptions(300, seed=0)
    assert [len(description.things) for description in descriptions] == [1] * 150 + [2] * 150
    assert all(is_held_out(combination(r.things, r.relation, r.background or "")) for r in descriptions)
    assert all(parse_caption(description.prompt) == description for description in descriptions)
    assert len(set(descriptions[150:])) == 150
    repeats = len(descriptions[:150]) - len(set(descriptions[:150]))
    assert repeats == max(0, 150 - 107)
    assert held_out_descriptions(300, seed=0) == descriptions
    assert held_out_descriptions(300, seed=1) != descriptions
    assert [len(r.things) for r in held_out_descriptions(1, seed=0)] == [1]


def test_held_out_descriptions_never_train():
    asked = {combination(r.things, r.relation, r.background or "") for r in held_out_descriptions(1000, seed=3)}
    rng = np.random.default_rng(3)
    trained = [sample_scene(rng) for _ in range(3000)]
    assert not asked & {combination(s.things, s.relation, s.background) for s in trained}


@pytest.mark.parametrize("count", [0, -1, 2001])
def test_counts_out_of_range_are_refused(count):
    with pytest.raises(ConfigError, match="count"):
        held_out_descriptions(count, seed=0)


def test_descriptions_are_usable_as_keys():
    assert (
        len({Description((Thing("star", "red"),), None, "blue"), Description((Thing("star", "red"),), None, "blue")})
        == 1
    )
