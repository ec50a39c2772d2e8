"""Seconds from a profile with known numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leandiffusion.core.errors import ConfigError
from leandiffusion.core.malloc import HIGHEST, LARGE, MEDIUM
from leandiffusion.plan.points import product_rate
from leandiffusion.plan.seconds import (
    ARRIVING,
    COMPETING,
    IN_NETWORKS,
    OTHERS,
    OVERHEADS,
    fetch_seconds,
    load_seconds,
    ops_seconds,
    stage_seconds,
)  # fmt: skip
from leandiffusion.plan.work import Ops, StageWork

from .profiles import PROFILE

QUIET = replace(PROFILE, overhead=0.0)
SECOND = Ops("matmul", 4e7 / IN_NETWORKS, 1000, 4e10 / IN_NETWORKS, 4e8 / IN_NETWORKS)
"""Products of a second."""


def work(*ops: Ops) -> StageWork:
    return StageWork(0, ops)


def test_products_take_their_operations_over_the_rate_at_their_intensity() -> None:
    assert ops_seconds(Ops("matmul", 1e8, 10, 1e9, 1e8), "float32", QUIET) == pytest.approx(IN_NETWORKS * 0.1)
    assert ops_seconds(Ops("matmul", 4e8, 10, 4e9, 4e7), "float32", QUIET) == pytest.approx(IN_NETWORKS * 0.1)
    between = 10**0.5 * 10
    assert product_rate(PROFILE.products["float32"]["matmul"], between) == pytest.approx(2e10)


def test_products_that_wait_for_memory_take_their_bytes() -> None:
    """Below the first point, where 1e9 bytes/s were moved."""
    assert ops_seconds(Ops("matmul", 1e6, 100, 1e6, 1e8), "float32", QUIET) == pytest.approx(IN_NETWORKS * 0.1)


def test_other_operations_take_their_bytes_and_each_its_overhead() -> None:
    some = Ops("other", 1e6, 100, 0.0, 1e8)
    assert ops_seconds(some, "float32", QUIET) == pytest.approx(OTHERS * 1e8 / 4e10)
    assert ops_seconds(some, "float32", PROFILE) == pytest.approx(OTHERS * 1e8 / 4e10 + 100 * OVERHEADS["other"] * 1e-6)


@pytest.mark.parametrize("kind", ["matmul", "conv", "attention"])
def test_each_product_has_the_overhead_of_its_kind(kind: str) -> None:
    some = Ops(kind, 1e6, 100, 1e8, 1e7)
    extra = ops_seconds(some, "float32", PROFILE) - ops_seconds(some, "float32", QUIET)
    assert extra == pytest.approx(100 * OVERHEADS[kind] * 1e-6)


def test_what_layers_call_one_by_one_takes_longer() -> None:
    layers = StageWork(0, (SECOND,), around=(Ops("layer", 0.0, 1000, 0.0, 0.0),))
    extra = stage_seconds(layers, "float32", PROFILE) - stage_seconds(work(SECOND), "float32", PROFILE)
    assert extra == pytest.approx(1000 * OVERHEADS["layer"] * 1e-6)


PAGES = 3 * (1 / 1e9 - 1 / 4e9)
"""Of a byte of fresh memory: a third of what the largest addition moves is its sum."""


@pytest.mark.parametrize("freed_from", [LARGE, MEDIUM, HIGHEST])
@pytest.mark.parametrize(("more", "paid"), [(0, True), (-1, False)])
def test_blocks_pay_for_their_pages_where_they_come_from_the_system(freed_from: int, more: int, paid: bool) -> None:
    size = freed_from + more
    made = StageWork(0, (), around=(Ops("made", float(size), 10, 0.0, 10.0 * size),))
    assert stage_seconds(made, "float32", QUIET, freed_from=freed_from) == pytest.approx(10 * size * PAGES * paid)


def test_where_keeping_memory_gains_nothing_pages_cost_nothing() -> None:
    """As with other C libraries, and on accelerators; a tenth is noise."""
    moves = {"kept": ((1e6, 4e10), (1e8, 1.1e10)), "fresh": ((1e6, 4e10), (1e8, 1e10))}
    made = Ops("made", 1e8, 1, 0.0, 1e8)
    assert ops_seconds(made, "float32", replace(QUIET, moves=moves), freed_from=LARGE) == 0.0


def test_small_additions_tell_nothing_of_pages() -> None:
    """Below 12 MB sums are no blocks that go back: a rate in the cache that noise lowered is no rate of memory."""
    moves = {"kept": ((1e6, 4e10), (1e8, 1e10)), "fresh": ((1e6, 2e10), (1e8, 1e10))}
    sums = Ops("other", 1e8, 1, 0.0, 1e8)
    assert ops_seconds(sums, "float32", replace(QUIET, moves=moves)) == pytest.approx(OTHERS * 1e8 / 1e10)


def test_large_additions_go_at_the_rate_without_pages() -> None:
    """The largest is slow only for the pages of its sum, which is told by itself."""
    moves = {"kept": ((1e6, 4e10), (1e8, 2e10), (2e8, 1e9)), "fresh": ((1e6, 4e10), (1e8, 1e9), (2e8, 1e9))}
    sums = Ops("other", 2e8, 1, 0.0, 2e8)
    assert ops_seconds(sums, "float32", replace(QUIET, moves=moves)) == pytest.approx(OTHERS * 2e8 / 2e10)


def test_plain_weights_are_reordered_for_each_convolution() -> None:
    """Points are (1e6 bytes, nothing) and (2e6, 10 ms)."""
    assert ops_seconds(Ops("reordered", 1.5e6, 4, 0.0, 6e6), "float32", PROFILE) == pytest.approx(4 * 0.005)
    larger = ops_seconds(Ops("reordered", 4e6, 1, 0.0, 4e6), "float32", PROFILE)
    assert larger == pytest.approx(0.02)  # in proportion to the largest that was measured


def test_where_nothing_is_reordered_plain_weights_cost_nothing() -> None:
    gpu = replace(QUIET, reorder={"float32": ()})
    assert ops_seconds(Ops("reordered", 4e6, 1, 0.0, 4e6), "float32", gpu) == 0.0


def test_a_stage_is_the_sum_of_its_operations() -> None:
    parts = [Ops("matmul", 1e8, 3, 3e8, 1e7), Ops("other", 1e6, 5, 0.0, 5e6), Ops("attention", 1e8, 1, 1e8, 1e6)]
    assert stage_seconds(work(*parts), "float32", PROFILE) == pytest.approx(
        sum(stage_seconds(work(part), "float32", PROFILE) for part in parts)
    )
    assert stage_seconds(work(), "float32", PROFILE) == 0.0


def test_fetching_takes_a_core_where_all_compute() -> None:
    stage, fetched = work(SECOND), 500_000_000  # a second, and half a second
    assert stage_seconds(stage, "float32", QUIET, fetched=fetched) == pytest.approx(1 + COMPETING * 0.5)


@pytest.mark.parametrize("told", [{"device": "cpu: paper", "threads": "2", "cores": "3"}, {"device": "cuda: paper"}])
def test_fetching_hides_behind_computing_elsewhere(told: dict[str, str]) -> None:
    stage, profile = work(SECOND), replace(QUIET, taken_under=told)
    assert stage_seconds(stage, "float32", profile, fetched=500_000_000) == pytest.approx(1.0)
    assert stage_seconds(stage, "float32", profile, fetched=3_000_000_000) == pytest.approx(3.0)


def test_with_room_for_one_layer_only_nothing_hides() -> None:
    profile = replace(QUIET, taken_under={"device": "cuda: paper"})
    assert stage_seconds(work(SECOND), "float32", profile, fetched=500_000_000, ahead=False) == pytest.approx(1.5)


def test_each_arrival_takes_time_of_its_own() -> None:
    many, few = (stage_seconds(work(), "float32", PROFILE, fetched=1000, arrivals=count) for count in (1000, 100))
    assert many - few == pytest.approx(900 * ARRIVING * PROFILE.overhead)


def test_fresh_memory_is_handed_out_page_by_page() -> None:
    assert fetch_seconds(10**9, "float32", QUIET) == pytest.approx(1 + 1e9 * PAGES)
    assert fetch_seconds(0, "float32", QUIET) == 0.0
    assert load_seconds(10**9, "float32", QUIET) == pytest.approx(2.0)  # whole networks, at the rate measured of them


def test_a_dtype_that_was_not_measured_is_told() -> None:
    with pytest.raises(ConfigError, match="no rates for float16, only for float32"):
        stage_seconds(work(), "float16", PROFILE)


KINDS = st.sampled_from(["matmul", "conv", "attention"])
AMOUNTS = st.floats(1e5, 1e12)


@given(KINDS, AMOUNTS, AMOUNTS, st.floats(1.0, 100.0))
def test_more_operations_are_never_faster(kind: str, flops: float, nbytes: float, times: float) -> None:
    little, much = (Ops(kind, flops * n, 1, flops * n, nbytes) for n in (1.0, times))
    seconds = [ops_seconds(ops, "float32", PROFILE) for ops in (little, much)]
    assert seconds[1] >= seconds[0] * (1 - 1e-9)


@given(st.integers(0, 10**12), st.floats(1.0, 100.0))
def test_fetching_more_is_never_faster(fetched: int, times: float) -> None:
    stage = work(Ops("matmul", 1e10, 1, 1e10, 1e8))
    amounts = 0, fetched, int(fetched * times)
    alone, some, more = (stage_seconds(stage, "float32", PROFILE, fetched=amount) for amount in amounts)
    assert alone <= some <= more
