"""Medians, spreads and ratios within rounds, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from leandiffusion.bench.record import Measurement, Records
from leandiffusion.bench.report.statistics import Spread, figure_of, ratio_of, speedup_of, spread_of

STEP = figure_of("step")


@pytest.fixture
def drifting(records_of: Callable[..., Records], measure: Callable[..., Measurement]) -> Records:
    """A machine twice as slow in its second round; 'traced' missed that round, 'channels_last' never decoded."""
    steps = {"plain": (4.0, 8.0, 4.0), "channels_last": (2.0, 4.0, 1.0), "traced": (2.0, None, 2.5)}
    return records_of(
        *(
            measure(row, number, seconds={"step": step} | ({"decode": 1.0} if row != "channels_last" else {}))
            for row, rounds in steps.items()
            for number, step in enumerate(rounds)
            if step is not None
        )
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [([2.0], (2, 2, 2)), ([3.0, 1.0], (2, 1, 3)), ([5.0, 1.0, 2.0], (2, 1, 5)), ([4.0, 1.0, 2.0, 3.0], (2.5, 1, 4))],
)
def test_spread(values: list[float], expected: tuple[float, float, float]) -> None:
    assert Spread.of(values) == Spread(*expected)


def test_no_values_have_no_spread() -> None:
    assert Spread.of([]) is None


@pytest.mark.parametrize(
    ("spread", "text"),
    [(Spread(2.634, 2.6, 2.66), "2.63 (2.60–2.66)"), (Spread(1, 1, 1), "1.00"), (Spread(1.001, 1, 1.002), "1.00")],
)
def test_in_words(spread: Spread, text: str) -> None:
    assert str(spread) == text


@pytest.mark.parametrize(
    ("other", "expected"), [((3, 3, 4), True), ((5, 4, 6), False), ((0, 0, 0.5), False), ((1, 0, 9), True)]
)
def test_overlap(other: tuple[float, float, float], expected: bool) -> None:
    assert Spread(2, 1, 3).overlaps(Spread(*other)) is expected
    assert Spread(*other).overlaps(Spread(2, 1, 3)) is expected


def test_a_ratio_is_taken_within_each_round(drifting: Records) -> None:
    """2/4, 4/8 and 1/4; the ratio of the medians, 2/4, would hide the last."""
    assert ratio_of(drifting, "channels_last", STEP) == Spread(0.5, 0.25, 0.5)
    assert speedup_of(drifting, "channels_last", STEP) == Spread(2.0, 2.0, 4.0)


def test_rounds_that_one_of_them_missed_do_not_count(drifting: Records) -> None:
    assert ratio_of(drifting, "traced", STEP) == Spread(0.5625, 0.5, 0.625)
    assert ratio_of(drifting, "channels_last", STEP, "traced") == Spread(0.7, 0.4, 1.0)


@pytest.mark.parametrize("row", ["channels_last", "nowhere"])
def test_what_was_not_measured_has_no_figure(row: str, drifting: Records) -> None:
    decode = figure_of("decode")
    assert spread_of(drifting, row, decode) is None
    assert ratio_of(drifting, row, decode) is None
    assert speedup_of(drifting, row, decode) is None


def test_a_run_without_measurements(records_of: Callable[..., Any]) -> None:
    assert ratio_of(records_of(), "plain", STEP) is None
    assert speedup_of(records_of(), "plain", STEP) is None


def test_the_peak_is_a_figure(drifting: Records) -> None:
    peak = spread_of(drifting, "plain", figure_of("peak"))
    assert peak is not None
    assert peak.median == drifting.measured("plain")[0].peak
