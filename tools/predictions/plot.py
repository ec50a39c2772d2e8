"""Predicted against measured, as points beside the line where both are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from leandiffusion.bench.report.drawing.canvas import BASE, FAINT, GIB, OURS, PEERS, WIDTH, legend_below

from . import STEPS, Combination

COLORS = (OURS, PEERS, BASE, "#2da44e", "#8250df")


def figure(combinations: Sequence[Combination], title: str) -> Figure:
    """Peak memory on the left, seconds of a call on the right; a colour for each model."""
    made = Figure(figsize=(WIDTH, 5.4))
    FigureCanvasAgg(made)
    made.text(0.02, 0.97, "Predicted against measured", fontsize=15, fontweight="bold", va="top")
    made.text(0.02, 0.905, title, fontsize=10.5, color=BASE, va="top")
    memory, time = made.subplots(1, 2)
    made.subplots_adjust(0.075, 0.19, 0.98, 0.8, 0.2)
    peaks = [(each, each.measured.peak / GIB, each.predicted.peak / GIB) for each in combinations]
    calls = [(each, each.measured.call, each.predicted.call) for each in combinations]
    _scatter(memory, peaks, 0.1, "peak memory, GiB")
    _scatter(time, calls, 0.2, f"a call of {STEPS} steps, seconds")
    handles, _ = memory.get_legend_handles_labels()
    legend_below(made, handles)
    return made


def _scatter(ax: Any, points: Sequence[tuple[Combination, float, float]], band: float, what: str) -> None:
    values = [value for _, *pair in points for value in pair]
    low, high = min(values) / 1.3, max(values) * 1.3
    ends = [low, high]
    ax.fill_between(ends, [(1 - band) * x for x in ends], [(1 + band) * x for x in ends], color=FAINT, alpha=0.2, lw=0)
    ax.plot(ends, ends, color=FAINT, linewidth=1)
    models = list(dict.fromkeys(each.model for each, _, _ in points))
    for model, color in zip(models, COLORS * len(models), strict=False):
        some = [(x, y) for each, x, y in points if each.model == model]
        ax.scatter(*zip(*some, strict=True), s=34, color=color, alpha=0.75, linewidths=0, label=model, zorder=3)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, place: f"{value:g}")
    ax.set_title(f"{what}; shaded: within {band:.0%}")
    ax.set_xlabel("measured")
    ax.set_ylabel("predicted")
