"""What charts share: the figure with its title, colours, units and legends."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...record import Records
from ..describe import headline
from ..statistics import Spread

OURS, PEERS, BASE, FAINT, INK = "#1f6feb", "#d9480f", "#57606a", "#8c959f", "#1f2328"
GIB, MIB = 2**30, 2**20
WIDTH = 10.0
"""Inches: at 100 pixels an inch, as wide as a page shows it, text of 10 points is easy to read."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "figure.dpi": 160,
    "savefig.dpi": "figure",
    "savefig.facecolor": "white",
    "savefig.bbox": None,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "xtick.color": BASE,
    "ytick.color": BASE,
}
"""Settings of matplotlib that a user's own might change."""


def make_figure(title: str, records: Records, height: float, lines: int = 1, columns: int = 1) -> tuple[Figure, list]:
    """A figure so many inches high with a title and the run's headline, and its axes line by line."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    figure.text(0.02, 1 - 0.16 / height, title, fontsize=15, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.50 / height, headline(records), fontsize=10.5, color=BASE, va="top")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    figure.subplots_adjust(0.075, 0.95 / height, 0.98, 1 - (0.9 if lines * columns == 1 else 1.12) / height, 0.17, 0.5)
    return figure, axes


def legend_below(figure: Figure, keys: Sequence[Any]) -> None:
    """One line of keys at the foot of the figure."""
    figure.legend(handles=list(keys), loc="lower center", ncols=len(keys), bbox_to_anchor=(0.5, 0.0), fontsize=10)


def row_color(records: Records, row: str) -> str:
    """Blue for this library, orange for other programs, grey for the row that others are compared with."""
    return PEERS if records.run.rows[row].get("peer") else BASE if row == records.base else OURS


def row_marker(records: Records, row: str) -> str:
    """A circle for this library, a diamond for other programs, a square for the base."""
    return {PEERS: "D", BASE: "s", OURS: "o"}[row_color(records, row)]


def row_keys(records: Records, rows: Iterable[str], marker: str | None = None) -> list[Any]:
    """What the colours mean, as far as they occur; shown by their own markers or by one for all."""
    seen = {row_color(records, row): marker or row_marker(records, row) for row in rows}
    labels = {BASE: "base of the comparison", OURS: "this library", PEERS: "other programs"}
    return [
        Line2D([], [], color=color, marker=seen[color], markersize=8, linestyle="", label=label)
        for color, label in labels.items()
        if color in seen
    ]


def memory_unit(counts: Iterable[float]) -> tuple[str, int]:
    """GiB, or MiB where nothing reaches a GiB; and its bytes."""
    return ("GiB", GIB) if max(counts) >= GIB else ("MiB", MIB)


def time_unit(seconds: Iterable[float]) -> tuple[str, float]:
    """'s', or 'ms' where nothing reaches a second; and its seconds."""
    return ("s", 1.0) if max(seconds) >= 1 else ("ms", 1e-3)


def whiskers(spread: Spread, unit: float = 1.0) -> list[list[float]]:
    """Down and up from the median, as `errorbar` takes them for one point."""
    return [[(spread.median - spread.low) / unit], [(spread.high - spread.median) / unit]]


def folded(text: str, width: int) -> str:
    """The text on two lines at most, cut where it is longer."""
    return "\n".join(textwrap.wrap(text, width, max_lines=2, placeholder="…", break_on_hyphens=False))
