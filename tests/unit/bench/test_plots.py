"""Plots are drawn where there is something to draw, aside first, and without anything global."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from leandiffusion.bench.record import Absent, Measurement, Records
from leandiffusion.bench.report.plots import PLOTS, draw_plots, plot_path
from leandiffusion.core.errors import BackendUnavailable


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_run_gets(published: Records, tmp_path: Path) -> None:
    paths = draw_plots(published, tmp_path / "cpu.v2")
    assert [path.name for path in paths] == ["cpu.v2-tradeoff.png", "cpu.v2-speedup.png", "cpu.v2-timeline.png"]
    assert names(tmp_path) == {path.name for path in paths}
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width == 1600
            assert picture.getpixel((2, 2))[:3] == (255, 255, 255)  # type: ignore[index]


def test_what_the_attention_suite_gets(attention: Records, tmp_path: Path) -> None:
    assert [path.name for path in draw_plots(attention, tmp_path / "a")] == ["a-attention.png"]


def test_drawing_twice_gives_the_same_file(published: Records, tmp_path: Path) -> None:
    one = [path.read_bytes() for path in draw_plots(published, tmp_path / "a")]
    assert [path.read_bytes() for path in draw_plots(published, tmp_path / "a")] == one


def test_too_little_is_not_drawn_and_an_old_plot_goes(
    records_of: Callable[..., Records], measure: Callable[..., Measurement], tmp_path: Path
) -> None:
    for name in PLOTS:
        plot_path(tmp_path / "a", name).touch()
    lonely = records_of(measure("plain", timeline=[]), Absent("traced", "no"))
    assert draw_plots(lonely, tmp_path / "a") == []
    assert names(tmp_path) == set()
    assert draw_plots(records_of(), tmp_path / "a") == []


def test_one_size_is_no_curve(attention: Records, tmp_path: Path) -> None:
    few = replace(attention, outcomes=[o for o in attention.outcomes if o.row.startswith("256")])
    assert draw_plots(few, tmp_path / "a") == []


@pytest.mark.parametrize("factor", [1e-3, 1.0, 100.0])
def test_any_scale(
    factor: float, records_of: Callable[..., Records], measure: Callable[..., Measurement], tmp_path: Path
) -> None:
    """From a GPU's milliseconds and MiB to minutes and hundreds of GiB; no warning, which would be an error."""
    rows = [measure("plain"), measure("traced")]
    scaled = [
        replace(
            m,
            seconds={k: v * factor for k, v in m.seconds.items()},
            peaks={k: int(v * factor) + place for k, v in m.peaks.items()},
        )
        for place, m in enumerate(rows)
    ]
    assert len(draw_plots(records_of(*scaled), tmp_path / "a")) == 3


def test_rows_alike_do_not_trip_the_axes(
    records_of: Callable[..., Records], measure: Callable[..., Measurement], tmp_path: Path
) -> None:
    same = [replace(measure("plain"), row=row) for row in ("plain", "traced", "half_precision")]
    assert len(draw_plots(records_of(*same), tmp_path / "a")) == 3


def test_titles_that_mean_something_to_matplotlib(published: Records, tmp_path: Path) -> None:
    rows = {name: {**row, "title": r"50% $x^ \frac{ $ _" + name} for name, row in published.run.rows.items()}
    odd = replace(published, run=replace(published.run, rows=rows))
    assert len(draw_plots(odd, tmp_path / "a")) == 3


def test_settings_of_matplotlib_stay_as_they_were(published: Records, tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_plots(published, tmp_path / "a")
    assert dict(matplotlib.rcParams) == before


def test_a_failure_leaves_the_old_plot(published: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    path = plot_path(tmp_path / "a", "tradeoff")
    path.write_text("old")

    def full(self: Figure, target: Path, **_: object) -> None:
        Path(target).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        draw_plots(published, tmp_path / "a")
    assert path.read_text() == "old"
    assert names(tmp_path) == {path.name}


def test_without_matplotlib(published: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'leandiffusion\[bench\]'"):
        draw_plots(published, tmp_path / "a")


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 5), (2, 3), (3, 4), (4, 1)], [(1, 5), (2, 3), (4, 1)]),
        ([(1, 1), (2, 2)], [(1, 1)]),
        ([(1, 1), (1, 1), (1, 2)], [(1, 1)]),
    ],
)
def test_the_front(points: list[tuple[float, float]], front: list[tuple[float, float]]) -> None:
    from leandiffusion.bench.report.drawing.charts import pareto_front

    assert pareto_front(points) == front


def test_which_rows_have_a_panel(published: Records) -> None:
    """The base, the fastest, the smallest and every peer, then others; in the run's order."""
    from leandiffusion.bench.report.drawing.curves import panels, stretches

    shown = [m.row for m in panels(published)]
    assert shown == ["plain", "half_precision", "channels_last", "memory_efficient", "diffusers_half", "openvino_half"]
    samples = [(0.1, 1, "load"), (0.2, 1, "load"), (0.3, 1, ""), (0.5, 1, "text")]
    assert stretches(samples) == [(0.0, 0.2, "load"), (0.2, 0.3, ""), (0.3, 0.5, "text")]
