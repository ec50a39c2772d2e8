from __future__ import annotations

import time

import pytest

from leandiffusion.measure.clock import StageClock


def test_a_stage_is_charged_for_its_time_and_adds_up():
    clock = StageClock()
    for _ in range(2):
        with clock.stage("denoise"):
            time.sleep(0.02)
    with clock.stage("decode"):
        pass
    assert list(clock.seconds) == ["denoise", "decode"]
    assert clock.seconds["denoise"] >= 0.04  # sleep never returns early
    assert clock.seconds["decode"] < clock.seconds["denoise"]
    assert clock.total == pytest.approx(sum(clock.seconds.values()))


def test_a_stage_that_raises_is_charged_and_the_error_passes():
    clock = StageClock()
    with pytest.raises(ZeroDivisionError), clock.stage("encode"):
        _ = 1 / 0
    assert clock.seconds["encode"] >= 0


def test_queued_work_is_waited_for_at_both_ends():
    waits = []
    clock = StageClock(lambda: waits.append("wait"))
    with clock.stage("denoise"):
        waits.append("work")
    assert waits == ["wait", "work", "wait"]
