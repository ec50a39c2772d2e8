"""How well a model draws what it is told: verdicts over many prompts, summed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from leandiffusion.core.errors import ConfigError

from .scenes import COLOURS, SIZES, Description, Thing, combination, description_of, is_held_out, sample_scene
from .shapes import SHAPES
from .verify import Verdict, verify

_ATTRIBUTES = ("background", "count", "colours", "shapes", "sizes", "relation")


@dataclass(frozen=True)
class Share:
    """So many right out of so many."""

    right: int
    of: int

    @property
    def fraction(self) -> float:
        """0..1; nan where there was nothing to judge."""
        return self.right / self.of if self.of else float("nan")

    def __str__(self) -> str:
        return f"{self.fraction:.1%} ({self.right} of {self.of})" if self.of else "none asked"


@dataclass(frozen=True)
class Report:
    """Verdicts summed up.

    `singles` and `pairs` are the fully right pictures of one and of two things. `attributes` counts only the prompts
    that ask for the attribute. The confusions count (wanted, found) names; 'missing' was not drawn.
    """

    singles: Share
    pairs: Share
    attributes: dict[str, Share]
    shapes: Counter[tuple[str, str]]
    colours: Counter[tuple[str, str]]

    def table(self) -> str:
        """Everything as markdown."""
        lines = ["| asked | right |", "|---|---|", f"| one thing, fully right | {self.singles} |"]
        lines.append(f"| two things, fully right | {self.pairs} |")
        lines += [f"| {name} | {share} |" for name, share in self.attributes.items()]
        confusions = (("shape", list(SHAPES), self.shapes), ("colour", COLOURS, self.colours))
        for kind, names, counts in confusions:
            lines += ["", *_matrix(kind, names, counts)]
        return "\n".join(lines)


def _matrix(kind: str, names: Sequence[str], counts: Counter[tuple[str, str]]) -> list[str]:
    """Rows are what was asked for, columns what was drawn. Columns beyond the names show only when they occur."""
    columns = [*names, *(other for other in ("unclear", "missing") if any(counts[name, other] for name in names))]
    rows = [f"| {name} | " + " | ".join(str(counts[name, found] or "") for found in columns) + " |" for name in names]
    return [f"| {kind} asked \\ drawn | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows]


def score(pictures: Iterable[npt.NDArray[np.uint8]], descriptions: Sequence[Description]) -> Report:
    """Judge pictures (H, W, 3) of uint8 RGB, one for each description in order. ConfigError for more or fewer."""
    verdicts = [verify(picture, description) for picture, description in _same_length(list(pictures), descriptions)]
    return Report(
        singles=_share([v.fully_right for v in verdicts if len(v.description.things) == 1]),
        pairs=_share([v.fully_right for v in verdicts if len(v.description.things) == 2]),
        attributes={
            name: _share([getattr(v, f"{name}_ok") for v in verdicts if _asks(v, name)]) for name in _ATTRIBUTES
        },
        shapes=Counter((m.wanted.shape, m.found.shape if m.found else "missing") for v in verdicts for m in v.matches),
        colours=Counter(
            (m.wanted.colour, m.found.colour if m.found else "missing") for v in verdicts for m in v.matches
        ),
    )


def _same_length(
    pictures: list[npt.NDArray[np.uint8]], descriptions: Sequence[Description]
) -> Iterable[tuple[npt.NDArray[np.uint8], Description]]:
    if len(pictures) != len(descriptions):
        raise ConfigError(
            f"{len(pictures)} pictures for {len(descriptions)} descriptions: give one picture for each description."
        )
    return zip(pictures, descriptions, strict=True)


def _asks(verdict: Verdict, attribute: str) -> bool:
    description = verdict.description
    if attribute == "sizes":
        return any(thing.size for thing in description.things)
    return getattr(description, attribute) is not None if attribute in ("background", "relation") else True


def _share(rights: list[bool]) -> Share:
    return Share(sum(rights), len(rights))


def held_out_descriptions(count: int, seed: int) -> list[Description]:
    """`count` prompts that training never saw, half of one thing (first) and half of two; the same for the same seed.

    `description.prompt` is the canonical wording. Pairs are all different; single things repeat only after each of the
    held-out ones was asked once. ConfigError for a count outside 1..2000.
    """
    if not 1 <= count <= 2000:
        raise ConfigError(f"count={count} is out of range: ask for 1 to 2000 held-out prompts.")
    rng = np.random.default_rng(seed)
    singles = _held_out_singles()
    order = rng.permutation(len(singles))
    chosen = [singles[order[i % len(order)]] for i in range((count + 1) // 2)]
    pairs: dict[Description, None] = {}
    while len(pairs) < count // 2:
        pairs[description_of(sample_scene(rng, split="held_out", pair_probability=1.0))] = None
    return chosen + list(pairs)


def _held_out_singles() -> list[Description]:
    """Every held-out description of one thing: about a tenth of 1008."""
    every = product(SHAPES, COLOURS, SIZES, COLOURS)
    descriptions = [
        Description((Thing(shape, colour, size),), None, back) for shape, colour, size, back in every if colour != back
    ]
    return [
        description
        for description in descriptions
        if is_held_out(combination(description.things, None, description.background or ""))
    ]
