"""One run compared with an earlier one, by ratios within each run: how fast the machine was that day cancels out."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from ...core.units import format_bytes
from ..record import Records
from .statistics import Spread, figure_of, ratio_of, spread_of

if TYPE_CHECKING:
    from rich.table import Table

FIGURES = ("step", "decode", "peak")
"""Compared as ratios to the first measured row."""

OWN_PEAK = "peak in bytes"
"""Compared as it is, of the first measured row: memory is not noisy."""

MEASURED = "measured at all"

SAME = ("model", "size", "batch", "half", "device")
"""What two runs have to agree on, of their workloads."""


@dataclass(frozen=True)
class Change:
    """A figure of a row, then and now. `change` is the share by which its median rose, infinite where it is gone.

    `figure` is 'step', 'decode' or 'peak', relative to the base row, 'peak in bytes' of the base row, or 'measured at
    all'. `worse` when it rose by more than the limit and the spreads do not overlap. `reason`: why there is no `new`.
    """

    row: str
    figure: str
    old: Spread | None
    new: Spread | None
    change: float
    worse: bool
    reason: str = ""


def parse_share(text: str) -> float:
    """'10%' or '0.1' -> 0.1. ConfigError for anything else: a number above 1 without % is ambiguous."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if match is None or (not match[2] and share > 1):
        raise ConfigError(f"{text!r} is not a share: write it as '10%' or '0.1', not below zero.")
    return share


def compare(old: Records, new: Records, limit: float) -> list[Change]:
    """Every row that was measured in `old`, in its order: what became of it.

    ConfigError when the runs measured different work, when their first measured rows differ, or when nothing was
    measured.
    """
    base = _common_base(old, new)
    changes = []
    for row in (name for name in old.run.rows if old.measured(name)):
        if not new.measured(row):
            reason = new.trouble(row) or ("was not reached" if row in new.run.rows else "is not among the rows")
            changes.append(Change(row, MEASURED, None, None, math.inf, True, reason))
            continue
        if (reason := new.trouble(row)) and not old.trouble(row):
            changes.append(Change(row, MEASURED, None, None, math.inf, True, reason))
        if row == base:
            then, now = (spread_of(records, row, figure_of("peak")) for records in (old, new))
            changes += _change(row, OWN_PEAK, then, now, limit)
        else:
            for figure in FIGURES:
                then, now = (ratio_of(records, row, figure_of(figure)) for records in (old, new))
                changes += _change(row, figure, then, now, limit)
    return changes


def table(changes: list[Change]) -> Table:
    """The changes for a terminal; what is worse in red."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, caption_justify="left")
    drawn.caption = Text("Relative to the first measured row, within each round; its own peak as it is.")
    for heading in ("row", "figure", "old", "new", "change", ""):
        drawn.add_column(heading, justify="right" if heading in ("old", "new", "change") else "left", overflow="fold")
    for change in changes:
        share = f"{change.change:+.1%}" if math.isfinite(change.change) else "–"
        said = "worse" + (f": {change.reason}" if change.reason else "") if change.worse else ""
        cells = (change.row, change.figure, _value(change, change.old), _value(change, change.new), share, said)
        drawn.add_row(*(Text(cell) for cell in cells), style="bold red" if change.worse else "")
    return drawn


def _change(row: str, figure: str, old: Spread | None, new: Spread | None, limit: float) -> list[Change]:
    if old is None:
        return []
    if new is None:
        return [Change(row, figure, old, None, math.inf, True, "was not measured")]
    share = new.median / old.median - 1 if old.median else math.inf if new.median else 0.0
    return [Change(row, figure, old, new, share, share > limit and not new.overlaps(old))]


def _common_base(old: Records, new: Records) -> str:
    """Name of the first measured row of both runs."""
    pairs = {"suite": (old.run.suite, new.run.suite)}
    pairs |= {name: (old.run.workload.get(name), new.run.workload.get(name)) for name in SAME}
    if differ := [f"{name} {then} and {now}" for name, (then, now) in pairs.items() if then != now]:
        raise ConfigError(f"the runs cannot be compared, they differ in {'; '.join(differ)}: measure the same work.")
    if old.base is None or new.base is None:
        raise ConfigError(f"the {'old' if old.base is None else 'new'} run holds no measured row: run it again.")
    if old.base != new.base:
        raise ConfigError(
            f"the runs cannot be compared, their first measured rows differ: {old.base} and {new.base}. "
            "Measure with the same --rows."
        )
    return old.base


def _value(change: Change, spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return format_bytes(spread.median) if change.figure == OWN_PEAK else str(spread)
