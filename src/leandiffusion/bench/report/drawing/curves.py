"""Curves: memory over time, and the attention suite over sizes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, NullLocator

from ...record import Measurement, Records
from ..describe import suite_of, title_of
from ..sheets import PEAK, STEP, sizes
from ..statistics import Figure as Reading
from ..statistics import Spread, speedup_of, spread_of
from .canvas import BASE, INK, OURS, folded, legend_below, make_figure, memory_unit, row_color, whiskers

STAGES = {"load": "#e4e7eb", "warm-up": "#fbeecb", "text": "#f7cfe3", "denoise": "#d3e6ff", "decode": "#cdeed5"}
PANELS = 6
SHARED = 3
"""Panels share their axis of time where the longest is at most so many times the shortest."""


def timeline(records: Records) -> Figure | None:
    """Memory over time of the first round, a panel per row, at most `PANELS` of them."""
    shown = panels(records)
    if not shown:
        return None
    columns = min(len(shown), 3 if len(shown) > 4 else 2)
    lines = -(-len(shown) // columns)
    figure, axes = make_figure("Memory over time", records, 2.0 + 2.35 * lines, lines, columns)
    unit, size = memory_unit(m.peak for m in shown)
    ends = [m.timeline[-1][0] for m in shown]
    shared = max(ends) <= SHARED * min(ends)
    for place, (ax, m) in enumerate(itertools.zip_longest(axes, shown)):
        if m is None:
            ax.remove()
            continue
        _draw_timeline(ax, m, size, row_color(records, m.row))
        ax.set_title(folded(title_of(records, m.row), 31 if columns == 3 else 48), fontweight="bold")
        ax.set_xlim(0, max(ends) if shared else m.timeline[-1][0])
        ax.set_ylim(0, max(m.peak for m in shown) / size * 1.2)
        ax.set_ylabel(f"memory ({unit})" if place % columns == 0 else "")
        ax.set_xlabel("seconds" if place + columns >= len(shown) else "")
    seen = {stage for m in shown for _, _, stage in m.timeline}
    keys: list[Any] = [Patch(color=color, label=stage) for stage, color in STAGES.items() if stage in seen]
    legend_below(figure, [*keys, Line2D([], [], color=INK, linestyle=":", label="peak")])
    return figure


def panels(records: Records) -> list[Measurement]:
    """First measurements with a timeline, in order: the base, the fastest, the smallest and peers, then others."""
    first = {row: m for row in records.run.rows for m in records.measured(row)[:1] if len(m.timeline) > 1}
    if not first:
        return []
    fastest = min(first, key=lambda row: first[row].seconds.get("step", float("inf")))
    smallest = min(first, key=lambda row: first[row].peak)
    peers = [row for row in first if records.run.rows[row].get("peer")]
    wanted = dict.fromkeys([next(iter(first)), fastest, smallest, *peers, *first])
    kept = set(list(wanted)[:PANELS])
    return [m for row, m in first.items() if row in kept]


def attention(records: Records) -> Figure | None:
    """Steps per second and memory by size of the picture, before and after."""
    pairs = {side: names for side, names in sizes(records).items() if any(map(records.measured, names))}
    if len(pairs) < 2:
        return None
    figure, axes = make_figure(suite_of(records).title, records, 5.4, 1, 2)
    unit, size = memory_unit(m.peak for names in pairs.values() for row in names for m in records.measured(row))
    for which, color, marker in ((0, BASE, "s"), (1, OURS, "o")):
        names = {side: pair[which] for side, pair in pairs.items()}
        _draw_by_size(axes[0], _spreads(records, names, _rate), 1, color, marker)
        _draw_by_size(axes[1], _spreads(records, names, PEAK), size, color, marker)
    _write_speedups(axes[0], records, pairs)
    axes[0].set_yscale("log")
    axes[0].margins(y=0.14)
    axes[0].yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes[1].set_ylim(0, axes[1].get_ylim()[1] * 1.06)
    for ax, title in zip(axes, ("steps per second (it/s)", f"peak memory ({unit})"), strict=True):
        _name_sizes(ax, list(pairs))
        ax.set_title(title, fontweight="bold")
        _mark_missing(ax, records, pairs)
    before = Line2D([], [], color=BASE, marker="s", label="before: scores are kept")
    legend_below(figure, [before, Line2D([], [], color=OURS, marker="o", label="after: memory-efficient")])
    return figure


def _draw_timeline(ax: Any, m: Measurement, size: int, color: str) -> None:
    times, memory = [at for at, _, _ in m.timeline], [count / size for _, count, _ in m.timeline]
    for start, end, stage in stretches(m.timeline):
        if stage in STAGES:
            ax.axvspan(start, end, color=STAGES[stage], linewidth=0, zorder=0)
    ax.grid(visible=False, axis="x")
    ax.fill_between(times, memory, color=color, alpha=0.13, linewidth=0, zorder=2)
    ax.plot(times, memory, color=color, linewidth=1.5, zorder=3)
    ax.axhline(m.peak / size, color=INK, linewidth=1.1, linestyle=":", zorder=4)
    ax.annotate(
        f"{m.peak / size:.3g}", (0, m.peak / size), (4, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=9.5,
    )  # fmt: skip


def stretches(timeline: Sequence[tuple[float, int, str]]) -> list[tuple[float, float, str]]:
    """(from, to, stage) of each stretch of time in one stage, without gaps."""
    found: list[tuple[float, float, str]] = []
    for stage, group in itertools.groupby(timeline, key=lambda sample: sample[2]):
        samples = list(group)
        found.append((found[-1][1] if found else 0.0, samples[-1][0], stage))
    return found


def _draw_by_size(ax: Any, spreads: Mapping[int, Spread], unit: float, color: str, marker: str) -> None:
    sides, values = list(spreads), list(spreads.values())
    if not sides:
        return
    down, up = zip(*(whiskers(spread, unit) for spread in values), strict=True)
    ax.errorbar(
        sides, [spread.median / unit for spread in values], yerr=[[d[0] for d in down], [u[0] for u in up]],
        color=color, marker=marker, markersize=7, linewidth=1.8, capsize=3, zorder=3,
    )  # fmt: skip


def _write_speedups(ax: Any, records: Records, pairs: Mapping[int, tuple[str, str]]) -> None:
    for side, (before, after) in pairs.items():
        ratio, here = speedup_of(records, after, STEP, before), spread_of(records, after, _rate)
        if ratio and here:
            ax.annotate(
                f"{ratio.median:.2f}×", (side, here.median), (9, 5), textcoords="offset points", color=OURS,
                fontweight="bold",
            )  # fmt: skip


def _mark_missing(ax: Any, records: Records, pairs: Mapping[int, tuple[str, str]]) -> None:
    """Said at the foot for each size that did not run one way."""
    for side, names in pairs.items():
        for row, when, color in zip(names, ("before", "after"), (BASE, OURS), strict=True):
            if not records.measured(row):
                ax.annotate(
                    f"{when}: not run", (side, 0), (0, 9), xycoords=("data", "axes fraction"), ha="center",
                    textcoords="offset points", va="center", color=color, fontsize=9.5, fontstyle="italic",
                )  # fmt: skip


def _name_sizes(ax: Any, sides: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xticks(sides, [str(side) for side in sides])
    ax.set_xlim(min(sides) / 1.35, max(sides) * 1.5)
    ax.set_xlabel("side of the picture (px)")


def _spreads(records: Records, rows: Mapping[int, str], reading: Reading) -> dict[int, Spread]:
    return {side: spread for side, row in rows.items() if (spread := spread_of(records, row, reading))}


def _rate(m: Measurement) -> float | None:
    seconds = m.seconds.get("step")
    return 1 / seconds if seconds else None
