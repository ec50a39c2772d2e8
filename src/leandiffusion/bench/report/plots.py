"""Records as pictures, by matplotlib, which is only needed here: `pip install 'leandiffusion[bench]'`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.aside import aside
from ...core.errors import BackendUnavailable
from ..record import Records
from .describe import suite_of

PLOTS = {
    "tradeoff": "Time per step against peak memory",
    "speedup": "Speed-up of a step, by row",
    "timeline": "Memory over time, by stage",
    "attention": "Steps per second and memory, by size of the picture",
}
"""The plots by name, which is the end of the file's name, and what each shows."""


def draw_plots(records: Records, stem: Path) -> list[Path]:
    """Draw what the records hold enough of; the files written, `<stem>-<name>.png` with the names of `PLOTS`.

    Plots of an earlier run with the same stem are replaced, or removed where there is no longer enough to draw.
    BackendUnavailable without matplotlib.
    """
    with style():
        return _draw_plots(records, stem)


@contextmanager
def style() -> Iterator[None]:
    """Meanwhile matplotlib draws as plots here look. BackendUnavailable without it."""
    try:
        import matplotlib
    except ImportError as error:
        raise BackendUnavailable("plots need matplotlib: pip install 'leandiffusion[bench]'.") from error
    from .drawing.canvas import STYLE

    with matplotlib.rc_context(STYLE):
        yield


def _draw_plots(records: Records, stem: Path) -> list[Path]:
    from .drawing import charts, curves

    kinds = {
        "tradeoff": charts.tradeoff,
        "speedup": charts.speedup,
        "timeline": curves.timeline,
        "attention": curves.attention,
    }
    wanted, written = suite_of(records).plots, []
    for name in PLOTS:
        path = plot_path(stem, name)
        figure = kinds[name](records) if name in wanted else None
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            save_figure(figure, path)
            written.append(path)
    return written


def plot_path(stem: Path, name: str) -> Path:
    """Where the plot of that name lies."""
    return stem.with_name(f"{stem.name}-{name}.png")


def save_figure(figure: Any, path: Path) -> None:
    """Written aside, then renamed: a reader never sees half a picture."""
    with aside(path) as place:
        figure.savefig(place, format="png", metadata={"Software": None})
        os.replace(place, path)
