"""Does a picture show what its prompt asked for? Judged from pixels alone, attribute by attribute."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from .pixels import Reading, Seen, read
from .scenes import Description, Thing


@dataclass(frozen=True)
class Match:
    """A thing that was asked for and the patch that comes nearest to it; `found` is None where nothing is left."""

    wanted: Thing
    found: Seen | None

    @property
    def colour_ok(self) -> bool:
        return self.found is not None and self.found.colour == self.wanted.colour

    @property
    def shape_ok(self) -> bool:
        return self.found is not None and self.found.shape == self.wanted.shape

    @property
    def size_ok(self) -> bool:
        """Any size will do where none was asked for."""
        return self.found is not None and self.wanted.size in (None, self.found.size)

    @property
    def rights(self) -> int:
        """How many of colour, shape and size are right."""
        return self.colour_ok + self.shape_ok + self.size_ok


@dataclass(frozen=True)
class Verdict:
    """What was asked for beside what is there. `extra` are patches that nothing in the prompt accounts for."""

    description: Description
    background: str
    matches: tuple[Match, ...]
    extra: tuple[Seen, ...]
    relation: str | None

    @property
    def background_ok(self) -> bool:
        return self.description.background in (None, self.background)

    @property
    def count_ok(self) -> bool:
        """As many things as were asked for, whatever they look like."""
        return not self.extra and all(match.found for match in self.matches)

    @property
    def colours_ok(self) -> bool:
        return all(match.colour_ok for match in self.matches)

    @property
    def shapes_ok(self) -> bool:
        return all(match.shape_ok for match in self.matches)

    @property
    def sizes_ok(self) -> bool:
        return all(match.size_ok for match in self.matches)

    @property
    def relation_ok(self) -> bool:
        return self.description.relation in (None, self.relation)

    @property
    def fully_right(self) -> bool:
        """Everything that the prompt says holds, and nothing else is in the picture."""
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong, in words; empty when the picture is right."""
        faults = []
        if not self.background_ok:
            faults.append(f"the background is {self.background}, not {self.description.background}")
        for match in self.matches:
            wanted = " ".join(filter(None, (match.wanted.size, match.wanted.colour, match.wanted.shape)))
            if match.found is None:
                faults.append(f"the {wanted} is missing")
            elif match.rights < 3:
                faults.append(f"instead of the {wanted} there is a {match.found}")
        faults += [f"a {seen} was not asked for" for seen in self.extra]
        if not self.relation_ok:
            found = f"is {self.relation}" if self.relation else "cannot be compared with"
            faults.append(f"the first thing {found} the second, not {self.description.relation} it")
        return tuple(faults)


def verify(picture: npt.NDArray[np.uint8], description: Description) -> Verdict:
    """Judge a picture of shape (H, W, 3), RGB 0..255, 32 pixels or more each way; ConfigError for any other."""
    return judge(read(picture), description)


def judge(reading: Reading, description: Description) -> Verdict:
    """Match what was read with what was asked for, in the way that leaves the fewest faults."""
    choices = [*reading.things[:4], *[None] * len(description.things)]  # the largest four: enough to name what is wrong
    return max(
        (_pair_up(description, reading, chosen) for chosen in permutations(choices, len(description.things))),
        key=_merit,
    )


def _pair_up(description: Description, reading: Reading, chosen: tuple[Seen | None, ...]) -> Verdict:
    matches = tuple(Match(wanted, found) for wanted, found in zip(description.things, chosen, strict=True))
    extra = tuple(seen for seen in reading.things if not any(seen is found for found in chosen))
    return Verdict(description, reading.background, matches, extra, _relation(*chosen) if len(chosen) == 2 else None)


def _merit(verdict: Verdict) -> tuple[int, int, bool]:
    found = sum(match.found is not None for match in verdict.matches)
    return found, sum(match.rights for match in verdict.matches), verdict.relation_ok


def _relation(first: Seen | None, second: Seen | None) -> str | None:
    """Where the first stands from the second, along the axis on which their centroids are further apart."""
    if first is None or second is None:
        return None
    right, down = first.x - second.x, first.y - second.y
    if abs(down) > abs(right):
        return "below" if down > 0 else "above"
    return "right of" if right > 0 else "left of"
