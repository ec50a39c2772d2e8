"""The simulation of a batch on many workers, and that docs/scaling.md shows what its record says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import scaling
from benchmarks.scaling_model import CLAIM, KEEP, LOOK, Queue, Setting, Simulation

from leandiffusion.core.config import read_json

PAGE = Path(__file__).parents[3] / "docs" / "scaling.md"
ONE = Setting(1, 10, 2.0, jitter=0, start=5, checkpoint=3e9, picture=0, hand_out=0, operations=1e12, read_list=0.1)


def test_a_queue_serves_in_the_order_of_coming_and_idles_where_nobody_is() -> None:
    two = Queue(servers=2)
    assert [two.done(now, 3.0) for now in (0.0, 0.0, 1.0, 1.0, 20.0)] == [3, 3, 6, 6, 23]
    assert two.worked == 15


def test_one_worker_takes_as_long_as_its_parts() -> None:
    outcome = Simulation(ONE).run()
    assert outcome.seconds == pytest.approx(10 * 0.1 + 5 + 3 + 10 * 2, abs=1e-3)
    assert outcome.opening == pytest.approx(9)
    assert outcome.cost(ONE) == pytest.approx(outcome.seconds / 3600 * 100)


def test_workers_open_one_checkpoint_from_one_store_and_then_draw_side_by_side() -> None:
    outcome = Simulation(replace(ONE, workers=20, rows=2000)).run()
    assert outcome.opening == pytest.approx(2000 * 0.1 + 5 + 20 * 3, rel=0.02)
    assert outcome.steady == pytest.approx(20 / 2, rel=0.02)


@pytest.mark.parametrize(
    ("narrow", "most"),
    [
        ({"operations": 26.0}, 26 / (LOOK + CLAIM + KEEP)),
        ({"picture": 1e6, "write_rate": 1e6}, 1.0),
        ({"hand_out": 0.5}, 2.0),
        ({"cores": 3}, 3 / 2),
    ],
)
def test_what_is_shared_and_narrow_sets_the_pace(narrow: dict[str, Any], most: float) -> None:
    wide = replace(ONE, workers=20, rows=800, checkpoint=0, start=0, read_list=0, jitter=0.3)
    assert Simulation(wide).run().steady == pytest.approx(10, rel=0.05)
    assert Simulation(replace(wide, **narrow)).run().steady == pytest.approx(most, rel=0.05)


def test_workers_that_find_their_jobs_in_a_folder_draw_each_once() -> None:
    simulation = Simulation(replace(ONE, workers=7, rows=50, hand_out=None))
    outcome = simulation.run()
    assert len(simulation._drawn) == 50
    assert set(simulation._state) == {2}
    assert outcome.seconds < 10 * 5 + 5 + 7 * 3 + 50 / 7 * 2 + 3


def test_the_operations_of_a_picture_are_those_that_are_counted(tmp_path: Path) -> None:
    seen: list[str] = []
    counting = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if counting and event in ("open", "os.listdir", "os.scandir", "os.link", "os.remove", "os.rename"):
            seen.append(event)

    sys.addaudithook(hook)  # for good, so it has to be told
    scaling.pausing(tmp_path, 1, 2, 0.0)
    counts = []
    for rows in (3, 13):
        seen.clear()
        counting = True
        scaling.pausing(tmp_path / str(rows), 1, rows, 0.0)
        counting = False
        counts.append(len(seen))
    told_by_no_event = 3  # the bytes, and two syncs
    assert counts[1] - counts[0] == 10 * (LOOK + CLAIM + KEEP - told_by_no_event), seen[-24:]


def test_the_page_shows_the_records_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, table in scaling.tables(read_json(scaling.OUT)["results"]).items():
        assert table in text, f"{name}: python -m benchmarks.scaling --tables"
