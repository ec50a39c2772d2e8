"""Rows against each other: time against memory, and speed-up."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ...record import Records
from ..describe import suite_of, title_of
from ..sheets import PEAK, STEP
from ..statistics import Spread, speedup_of, spread_of
from .canvas import (
    FAINT,
    INK,
    legend_below,
    make_figure,
    memory_unit,
    row_color,
    row_keys,
    row_marker,
    time_unit,
    whiskers,
)
from .labels import place_labels

WIDE = 6
"""An axis is logarithmic where its greatest value is more than so many times its least."""


def tradeoff(records: Records) -> Figure | None:
    """Seconds per step against peak memory, with the front of rows that no other beats in both."""
    spreads = {row: (spread_of(records, row, STEP), spread_of(records, row, PEAK)) for row in records.run.rows}
    rows = {row: (time, peak) for row, (time, peak) in spreads.items() if time and peak}
    if len(rows) < 2:
        return None
    unit, second = time_unit(time.median for time, _ in rows.values())
    size_unit, size = memory_unit(peak.median for _, peak in rows.values())
    figure, (ax, *_) = make_figure("Time against memory", records, 6.4)
    for row, (time, peak) in rows.items():
        ax.errorbar(
            time.median / second, peak.median / size, xerr=whiskers(time, second), yerr=whiskers(peak, size),
            fmt=row_marker(records, row), markersize=9, color=row_color(records, row), markeredgecolor="white",
            elinewidth=1.1, zorder=5 if row == records.base else 4,
        )  # fmt: skip
    points = [(time.median / second, peak.median / size) for time, peak in rows.values()]
    _scale(ax.set_xscale, ax.set_xlim, ax.xaxis, [x for x, _ in points])
    _scale(ax.set_yscale, ax.set_ylim, ax.yaxis, [y for _, y in points])
    lines = _draw_front(ax, pareto_front(points))
    for (x, y), (time, peak) in zip(points, rows.values(), strict=True):
        lines += [(time.low / second, y, time.high / second, y), (x, peak.low / size, x, peak.high / size)]
    ax.set_xlabel(f"time per step ({unit})")
    ax.set_ylabel(f"peak memory ({size_unit})")
    ax.text(0.012, 0.02, "↙ faster and smaller", transform=ax.transAxes, color=FAINT, fontsize=10)
    front = Line2D([], [], color=FAINT, linestyle="--", label="nothing is faster and smaller")
    legend_below(figure, [*row_keys(records, rows), front])
    colors = [row_color(records, row) for row in rows]
    place_labels(ax, points, [title_of(records, row) for row in rows], colors, lines)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates, from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def speedup(records: Records) -> Figure | None:
    """Bars of step time relative to the first measured row, with least and greatest of the rounds."""
    ratios = {row: ratio for row in records.run.rows if (ratio := speedup_of(records, row, STEP))}
    if len(ratios) < 2 or records.base is None:
        return None
    figure, (ax, *_) = make_figure("Speed-up of a step", records, 2.1 + 0.46 * len(ratios))
    published = _published(records, list(ratios))
    _draw_bars(ax, records, ratios)
    ax.scatter(list(published.values()), list(published), marker="|", s=260, color=INK, linewidth=2.2, zorder=4)
    ax.axvline(1, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    reach = max([ratio.high for ratio in ratios.values()] + list(published.values()))
    _write_ratios(ax, list(ratios.values()), published, reach)
    ax.set_xlim(0, reach * 1.1)
    titles = [textwrap.fill(title_of(records, row), 34, break_on_hyphens=False) for row in ratios]
    ax.set_yticks(range(len(ratios)), titles, color=INK)
    ax.set_ylim(len(ratios) - 0.45, -0.55)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"times as fast as “{title_of(records, records.base)}”: median, least and greatest of the rounds")
    keys = row_keys(records, ratios, marker="s")
    if published:
        mark = {"color": INK, "marker": "|", "markersize": 12, "markeredgewidth": 2.2, "linestyle": ""}
        keys.append(Line2D([], [], label=f"published, whole picture, {suite_of(records).published_on}", **mark))
    legend_below(figure, keys)
    widest = max(label.get_window_extent().width for label in ax.get_yticklabels())
    figure.subplots_adjust(left=(widest / figure.dpi + 0.32) / figure.get_figwidth())
    return figure


def _draw_bars(ax: Any, records: Records, ratios: dict[str, Spread]) -> None:
    places, medians = range(len(ratios)), [ratio.median for ratio in ratios.values()]
    ax.barh(places, medians, color=[row_color(records, row) for row in ratios], height=0.62, alpha=0.88)
    down, up = zip(*(whiskers(ratio) for ratio in ratios.values()), strict=True)
    errors = [[each[0] for each in down], [each[0] for each in up]]
    ax.errorbar(medians, places, xerr=errors, fmt="none", ecolor=INK, capsize=3.5, elinewidth=1.2)


def _write_ratios(ax: Any, ratios: Sequence[Spread], published: dict[int, float], reach: float) -> None:
    """Each ratio behind its bar, and behind the line at 1 and the published mark where those would cross it."""
    for place, ratio in enumerate(ratios):
        end = ratio.high
        for mark in sorted((1.0, published.get(place, 0.0))):
            end = mark if end < mark < end + 0.09 * reach else end
        ax.annotate(f"{ratio.median:.2f}×", (end, place), (6, 0), textcoords="offset points", va="center", color=INK)


def _published(records: Records, rows: Sequence[str]) -> dict[int, float]:
    """Published speed-ups by the row's place, where the run has the same base as what was published."""
    seconds = suite_of(records).published
    base = next(iter(seconds), None)
    if base is None or records.base != base:
        return {}
    return {i: seconds[base] / seconds[row] for i, row in enumerate(rows) if row in seconds and row != base}


def _draw_front(ax: Any, front: list[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """Steps along which being faster costs memory, to the edges of the axes; where its lines lie."""
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    xs = [front[0][0], *(x for x, _ in front), right]
    ys = [top, *(y for _, y in front), front[-1][1]]
    ax.plot(xs, ys, drawstyle="steps-post", color=FAINT, linewidth=1.3, linestyle="--", zorder=2)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    level = [(x, y, following, y) for x, y, following in zip(xs[1:], ys[1:], xs[2:], strict=False)]
    return [*level, *((x, y, x, above) for x, y, above in zip(xs[1:], ys[1:], ys, strict=False))]


def _scale(scale: Callable[..., Any], limits: Callable[..., Any], axis: Any, values: Sequence[float]) -> None:
    """Linear, or logarithmic where values lie far apart; with room for names around the points."""
    low, high = min(values), max(values)
    if high <= WIDE * low:
        room = 0.18 * (high - low) or 0.2 * high
        limits(max(0.0, low - room), high + room)
        return
    scale("log")
    limits(low / 1.5, high * 1.5)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, place: f"{value:g}")
