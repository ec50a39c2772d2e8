"""Medians with their spread, and ratios taken within a round, so that a machine's drift cancels."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..record import Measurement, Records


@dataclass(frozen=True)
class Spread:
    """A median with the least and the greatest value around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """The spread of some values; None when there are none."""
        values = sorted(values)
        return cls(statistics.median(values), values[0], values[-1]) if values else None

    def __str__(self) -> str:
        """'2.63 (2.60–2.66)', or '2.63' where that is all there is to say."""
        return self.text("{:.2f}".format)

    def text(self, form: Callable[[float], str]) -> str:
        """'2.2 s (2.1 s–2.3 s)', each value as `form` writes it, or without a range where none can be seen."""
        median, low, high = form(self.median), form(self.low), form(self.high)
        return median if low == high else f"{median} ({low}–{high})"

    def overlaps(self, other: Spread) -> bool:
        """Whether the two ranges overlap."""
        return self.low <= other.high and other.low <= self.high


Figure = Callable[[Measurement], float | None]


def figure_of(name: str) -> Figure:
    """'step', 'decode', … : seconds of that stage; 'peak': bytes. None where the row has no such stage."""
    if name == "peak":
        return lambda m: m.peak
    return lambda m: m.seconds.get(name)


def spread_of(records: Records, row: str, figure: Figure) -> Spread | None:
    """A figure of a row over its rounds."""
    return Spread.of(value for m in records.measured(row) if (value := figure(m)) is not None)


def ratio_of(records: Records, row: str, figure: Figure, to: str | None = None) -> Spread | None:
    """The figure of the row over that of row `to` (the first measured one), round by round."""
    to = to or records.base
    if to is None:
        return None
    base = {m.round: figure(m) for m in records.measured(to)}
    ratios = []
    for m in records.measured(row):
        mine, other = figure(m), base.get(m.round)
        if mine is not None and other:
            ratios.append(mine / other)
    return Spread.of(ratios)


def speedup_of(records: Records, row: str, figure: Figure, to: str | None = None) -> Spread | None:
    """The figure of row `to` (the first measured one) over the row's, by round: above 1 where the row needs less."""
    to = to or records.base
    return None if to is None else ratio_of(records, to, figure, row)
