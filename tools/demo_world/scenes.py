"""What the demonstration model can be asked for: scenes of one or two shapes, drawn at random, and their captions.

    a [small|large] COLOUR SHAPE on a BACKGROUND background
    a COLOUR SHAPE above|below|left of|right of a COLOUR SHAPE on a BACKGROUND background

A tenth of the combinations is held out of training, chosen by a hash that never changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from leandiffusion.core.errors import ConfigError
from leandiffusion.demo.words import ARTICLES, BACKGROUNDS, COLOURS, LEADS, RELATION_WORDS, SIZE_WORDS

from .layout import place_pair, place_single
from .shapes import SHAPES

T = TypeVar("T")
Split: TypeAlias = Literal["train", "held_out", "all"]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 40),
    "orange": (255, 128, 0),
    "yellow": (255, 226, 40),
    "green": (30, 150, 60),
    "blue": (35, 80, 225),
    "purple": (135, 45, 175),
    "white": (250, 250, 250),
    "black": (16, 16, 16),
}
SIZES = (None, "small", "large")
INVERSE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
RELATIONS = tuple(INVERSE)
_BACKWARD = ("below", "right of")  # the second thing comes first, from the upper left

_PARAPHRASED, _BACKGROUND_UNSAID, _RELATION_UNSAID = 0.5, 0.08, 0.06  # the last two among the paraphrases
_SAME_COLOUR = 0.05
_HELD_OUT_PART = 0.1


@dataclass(frozen=True)
class Thing:
    """A shape as the words name it. `size` is None, 'small' or 'large'."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True)
class Placed:
    """A thing in the picture: its centroid and radius in pixels, y downwards."""

    thing: Thing
    x: float
    y: float
    r: float


@dataclass(frozen=True)
class Scene:
    """One shape, or two where the first stands in `relation` to the second."""

    placed: tuple[Placed, ...]
    relation: str | None
    background: str

    @property
    def things(self) -> tuple[Thing, ...]:
        """What is shown, in the order of the canonical caption."""
        return tuple(placed.thing for placed in self.placed)


@dataclass(frozen=True)
class Description:
    """What a prompt says of a picture. None stands for anything: any size, any relation, any background."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str | None

    @property
    def prompt(self) -> str:
        """The canonical wording that asks for it."""
        return canonical_caption(self)


def description_of(scene: Scene) -> Description:
    """What the canonical caption of `scene` says."""
    return Description(scene.things, scene.relation, scene.background)


def combination(things: Sequence[Thing], relation: str | None, background: str) -> str:
    """A name for what is combined, without places. 'A above B' and 'B below A' have the same name."""
    if relation in _BACKWARD:
        things, relation = things[::-1], INVERSE[relation]
    words = " / ".join(f"{thing.size or ''} {thing.colour} {thing.shape}" for thing in things)
    return f"{words} / {relation or ''} / {background}"


@lru_cache(maxsize=1 << 16)
def is_held_out(name: str) -> bool:
    """Whether the combination of this name is kept from training: one in ten, the same on every machine."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < _HELD_OUT_PART * 2**64


def sample_scene(rng: np.random.Generator, *, split: Split = "train", pair_probability: float = 0.65) -> Scene:
    """Draw a scene of two shapes with `pair_probability`, else of one, from a split of the combinations.

    The words are drawn uniformly, except that two shapes seldom share a colour. ConfigError for an unknown split or a
    probability outside 0..1.
    """
    if split not in ("train", "held_out", "all"):
        raise ConfigError(f"split={split!r} is unknown: use 'train', 'held_out' or 'all'.")
    if not 0 <= pair_probability <= 1:
        raise ConfigError(f"pair_probability={pair_probability} is no probability: use a number from 0 to 1.")
    draw = _pair_words if rng.random() < pair_probability else _single_words
    while True:
        things, relation, background = draw(rng)
        if split == "all" or is_held_out(combination(things, relation, background)) == (split == "held_out"):
            return Scene(_place(rng, things, relation), relation, background)


def _place(rng: np.random.Generator, things: tuple[Thing, ...], relation: str | None) -> tuple[Placed, ...]:
    if relation is None:
        return (Placed(things[0], *place_single(rng, things[0].shape, things[0].size)),)
    axis = "y" if relation in ("above", "below") else "x"
    order = slice(None, None, -1) if relation in _BACKWARD else slice(None)
    lead, trail = things[order]
    places = place_pair(rng, (lead.shape, trail.shape), axis)[order]
    return tuple(Placed(thing, *spot) for thing, spot in zip(things, places, strict=True))


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]  # ten times faster than rng.choice


def _pick_except(rng: np.random.Generator, choices: Sequence[T], *taken: T) -> T:
    return _pick(rng, [choice for choice in choices if choice not in taken])


_Words: TypeAlias = tuple[tuple[Thing, ...], str | None, str]


def _single_words(rng: np.random.Generator) -> _Words:
    thing = Thing(_pick(rng, list(SHAPES)), _pick(rng, COLOURS), _pick(rng, SIZES))
    return (thing,), None, _pick_except(rng, COLOURS, thing.colour)


def _pair_words(rng: np.random.Generator) -> _Words:
    shapes = list(SHAPES)
    first = Thing(_pick(rng, shapes), _pick(rng, COLOURS))
    if rng.random() < _SAME_COLOUR:
        second = Thing(_pick_except(rng, shapes, first.shape), first.colour)
    else:
        second = Thing(_pick(rng, shapes), _pick_except(rng, COLOURS, first.colour))
    return (first, second), _pick(rng, RELATIONS), _pick_except(rng, COLOURS, first.colour, second.colour)


def canonical_caption(scene: Scene | Description) -> str:
    """The plain wording, for instance 'a small red circle on an orange background'."""
    joint = f" {scene.relation or 'and'} "
    subject = joint.join(_noun(thing.size, thing) for thing in scene.things)
    return f"{subject} on {_article(scene.background)} background" if scene.background else subject


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption of `scene`: the canonical wording for about half of the draws, else a paraphrase.

    A few per cent of all leave the background or the relation unsaid. At most 24 words.
    """
    if rng.random() >= _PARAPHRASED:
        return canonical_caption(scene)
    text = _pick(rng, LEADS) + _subject(scene, rng)
    if rng.random() >= _BACKGROUND_UNSAID:
        background = scene.background
        text = _pick(rng, BACKGROUNDS).format(text, a=_article(background), plain=background)
    if rng.random() < 0.1:
        text = re.sub(r"\ban (?=orange)", "a ", text)  # people type it
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.3 else text


def _subject(scene: Scene, rng: np.random.Generator) -> str:
    things, relation = list(scene.things), scene.relation
    if relation is not None and rng.random() < 0.5:
        things, relation = things[::-1], INVERSE[relation]
    article = _pick(rng, ARTICLES)
    nouns = [_noun(_pick(rng, SIZE_WORDS[t.size]) if t.size else None, t, article) for t in things]
    unsaid = relation is None or rng.random() < _RELATION_UNSAID
    joint = "and" if unsaid else _pick(rng, RELATION_WORDS[relation or "above"])
    return f" {joint} ".join(nouns)


def _article(words: str | None, article: str = "a") -> str:
    """`words` behind an article; 'a' turns to 'an' where English wants it."""
    if article == "a" and words and words[0] in "aeiou":
        article = "an"
    return f"{article} {words}".strip()


def _noun(size: str | None, thing: Thing, article: str = "a") -> str:
    return _article(f"{size + ' ' if size else ''}{thing.colour} {thing.shape}", article)


def _one_of(names: Sequence[str]) -> str:
    return "(" + "|".join(map(re.escape, names)) + ")"


_THING = rf"an? (?:{_one_of([size for size in SIZES if size])} )?{_one_of(COLOURS)} {_one_of(list(SHAPES))}"
_CANONICAL = re.compile(
    rf"{_THING}(?: {_one_of([*RELATIONS, 'and'])} {_THING})?(?: on an? {_one_of(COLOURS)} background)?\.?"
)


def parse_caption(text: str) -> Description | None:
    """What a canonical caption says; None where the wording is another. Capitals and spacing do not matter.

    Sizes, the relation ('and' in its place) and the background may be left out.
    """
    match = _CANONICAL.fullmatch(" ".join(text.lower().split()))
    if match is None:
        return None
    size, colour, shape, relation, size_2, colour_2, shape_2, background = match.groups()
    things = (Thing(shape, colour, size),)
    if relation is not None:
        things += (Thing(shape_2, colour_2, size_2),)
    return Description(things, relation if relation in RELATIONS else None, background)
