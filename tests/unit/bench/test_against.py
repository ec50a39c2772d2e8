"""Other programs are held against the row that is like them, and where we are behind, it says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from leandiffusion.bench.record import Measurement, Records
from leandiffusion.bench.report.against import comparisons, precision
from leandiffusion.bench.report.tables import markdown

Make = Callable[..., Records]
Maker = Callable[..., Measurement]


def test_peers_are_held_against_our_fastest_alike(published: Records) -> None:
    found = {comparison.peer: comparison for comparison in comparisons(published)}
    assert {comparison.ours for comparison in found.values()} == {"memory_efficient"}
    assert [what for what, _ in found["openvino_half"].losses()] == ["slower per step"]
    assert found["diffusers_half"].losses() == []


def test_a_peer_in_float32_is_held_against_float32_and_the_fastest(records_of: Make, measure: Maker) -> None:
    peer = measure("openvino_half", dtype="float32")
    found = comparisons(records_of(measure("plain"), measure("best_fp32"), measure("traced"), peer))
    assert [(comparison.ours, comparison.comparable) for comparison in found] == [
        ("best_fp32", True),
        ("traced", False),
    ]
    assert comparisons(records_of(measure("plain"), measure("openvino_half")))[0].comparable is False


def test_tf32_is_not_full_precision(records_of: Make, measure: Maker) -> None:
    records = records_of(measure("plain"), measure("best_fp32"))
    records.run.rows["best_fp32"]["about"] = "float32, tf32, channels_last"  # type: ignore[index]
    assert precision(records, "plain") == ("float32", False)
    assert precision(records, "best_fp32") == ("float32", True)


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ({"step": 1.0, "decode": 1.0}, "100% slower per step; 100% slower to decode; 100% bigger"),
        ({"step": 1.99, "decode": 2.0}, "less than 1% slower per step; 100% bigger"),
        ({"step": 2.5, "decode": 2.5}, "100% bigger"),
    ],
)
def test_where_we_are_behind_it_says_so(peer: dict[str, float], said: str, records_of: Make, measure: Maker) -> None:
    records = records_of(
        measure("plain", dtype="float32"),
        measure("traced", seconds={"step": 2.0, "decode": 2.0}, peaks={"load": 200}),
        measure("openvino_half", seconds=peer, peaks={"load": 100}),
    )
    assert f"**{said}**" in markdown(records)


def test_behind_in_some_rounds_only(records_of: Make, measure: Maker) -> None:
    steps = ((2.0, 1.9), (2.0, 2.1), (2.0, 1.8))
    outcomes = [
        measure(row, number, seconds={"step": pair[place]}, peaks={"load": 100})
        for number, pair in enumerate(steps)
        for place, row in enumerate(("traced", "openvino_half"))
    ]
    assert "5% slower per step (not in every round)" in markdown(records_of(*outcomes))
