"""Other programs compared with this library: which is faster, and which takes less memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..record import Records
from .describe import suite_of, title_of
from .sheets import DECODE, NOTHING, PEAK, STEP, Sheet
from .statistics import Figure, Spread, ratio_of, spread_of

OTHER_PRECISION = "other precision"


@dataclass(frozen=True)
class Comparison:
    """A peer's row against one of ours; `step`, `decode` and `peak` are theirs over ours, within each round.

    `comparable` when both compute in full precision, or both in a lower one.
    """

    peer: str
    ours: str
    comparable: bool
    step: Spread | None
    decode: Spread | None
    peak: Spread | None

    def losses(self) -> list[tuple[str, Spread]]:
        """Where ours is behind: 'slower per step', 'slower to decode', 'bigger', each with theirs over ours."""
        figures = (("slower per step", self.step), ("slower to decode", self.decode), ("bigger", self.peak))
        return [(what, ratio) for what, ratio in figures if ratio is not None and ratio.median < 1]


def comparisons(records: Records) -> list[Comparison]:
    """Each measured peer's row against our fastest row of its precision, and against our fastest row where that is
    another. Suites whose rows differ in size have none."""
    if suite_of(records).own_sizes:
        return []
    measured = [row for row in records.run.rows if records.measured(row)]
    ours = [row for row in measured if not _peer(records, row)]
    found = []
    for peer in (row for row in measured if _peer(records, row)):
        alike = _fastest(records, [row for row in ours if precision(records, row) == precision(records, peer)])
        best = _fastest(records, ours)
        found += [
            _comparison(records, peer, row, row == alike) for row in dict.fromkeys((alike, best)) if row is not None
        ]
    return found


def precision(records: Records, row: str) -> tuple[str, bool]:
    """The dtype of the row's weights, and whether float32 products are computed in TF32: what rows are compared by."""
    about = str(records.run.rows[row].get("about", ""))
    return records.measured(row)[0].dtype, re.search(r"\btf32\b", about) is not None


def has_peers(records: Records) -> bool:
    """Whether the run was asked to measure another program."""
    return any(_peer(records, row) for row in records.run.rows)


def against_sheet(records: Records) -> Sheet | None:
    """'Against other programs'; None when none was measured."""
    found = comparisons(records)
    if not found:
        return None
    rows = [
        [
            title_of(records, comparison.peer),
            title_of(records, comparison.ours) + ("" if comparison.comparable else f" ({OTHER_PRECISION})"),
            *(str(ratio or NOTHING) for ratio in (comparison.step, comparison.decode, comparison.peak)),
            verdict(comparison),
        ]
        for comparison in found
    ]
    legend = {
        "× step": "× step, × decode, × peak: theirs over ours within each round, median (least–greatest). Above 1 this "
        "library is faster, or smaller.",
        "our row": "Our row is the one with the fastest step among those of the peer's precision; where another one of "
        f"ours is faster still, that too ({OTHER_PRECISION}).",
    }
    columns = ["program", "our row", "× step", "× decode", "× peak", "verdict"]
    return Sheet("Against other programs", columns, rows, legend)


def verdict(comparison: Comparison) -> str:
    """'12% slower per step; 3% bigger' where ours is worse; else the figures it is ahead in every round, or 'even'."""
    if losses := comparison.losses():
        return "; ".join(in_words(what, ratio) for what, ratio in losses)
    figures = (
        ("faster per step", comparison.step),
        ("faster to decode", comparison.decode),
        ("smaller", comparison.peak),
    )
    return ", ".join(what for what, ratio in figures if ratio is not None and ratio.low > 1) or "even"


def in_words(loss: str, ratio: Spread, than: str = "") -> str:
    """'12% slower per step than X'; says so where some round has it the other way round."""
    more = 1 / ratio.median - 1 if ratio.median else float("inf")
    by = "less than 1%" if more < 0.01 else f"{more:.0%}"
    return f"{by} {loss}{f' than {than}' if than else ''}" + (" (not in every round)" if ratio.high >= 1 else "")


def _comparison(records: Records, peer: str, ours: str, comparable: bool) -> Comparison:
    def theirs(figure: Figure) -> Spread | None:
        return ratio_of(records, peer, figure, ours)

    return Comparison(peer, ours, comparable, theirs(STEP), theirs(DECODE), theirs(PEAK))


def _fastest(records: Records, rows: list[str]) -> str | None:
    steps = {row: step.median for row in rows if (step := spread_of(records, row, STEP)) is not None}
    return min(steps, key=steps.__getitem__, default=None)


def _peer(records: Records, row: str) -> str | None:
    return records.run.rows[row].get("peer")
