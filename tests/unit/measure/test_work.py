from __future__ import annotations

import gc
import threading

import pytest
import torch
import torch.nn.functional as F

from leandiffusion.measure.work import Allocations, allocated_bytes, count_flops

KIB = 1024


def _bytes(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


def test_products_and_convolutions_count_two_for_a_multiply_add() -> None:
    assert count_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
    x, weight = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    assert count_flops(lambda: F.conv2d(x, weight, padding=1)) == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    assert count_flops(lambda: x + x) == 0


def test_on_the_meta_device_the_count_is_the_same() -> None:
    def linear(device: str) -> int:
        x = torch.empty(2, 7, 16, device=device)
        return count_flops(lambda: F.linear(x, torch.empty(8, 16, device=device), torch.empty(8, device=device)))

    assert linear("meta") == linear("cpu") == 2 * 2 * 7 * 16 * 8


def test_the_peak_is_what_was_alive_at_once() -> None:
    def work() -> torch.Tensor:
        _bytes(5 * KIB)
        kept = _bytes(2 * KIB)
        _bytes(4 * KIB)
        return kept

    assert allocated_bytes(work) == Allocations(total=11 * KIB, peak=6 * KIB)


def test_what_was_held_before_is_no_credit() -> None:
    held = [_bytes(64 * KIB)]

    def work() -> None:
        held.clear()
        _bytes(3 * KIB)

    assert allocated_bytes(work) == Allocations(3 * KIB, 3 * KIB)


def test_a_block_that_outlived_an_earlier_count_is_forgotten() -> None:
    """The allocator gives the same address out again, and the profiler remembers it with its former size."""
    kept: list[torch.Tensor] = []
    for count in (64 * KIB, 48 * KIB, 56 * KIB):
        allocated_bytes(lambda count=count: kept.append(_bytes(count)))
        kept.clear()
        again = [_bytes(count)]

        def work(again: list[torch.Tensor] = again) -> None:
            again.clear()
            _bytes(2 * KIB)
            _bytes(3 * KIB)

        assert allocated_bytes(work) == Allocations(5 * KIB, 3 * KIB)


def test_temporaries_inside_an_operation_are_seen() -> None:
    """group_norm keeps mean and reciprocal deviation (1, 4) of its groups in float32 beside its result."""
    x = torch.ones(1, 8, 16, 16)
    found = allocated_bytes(lambda: F.group_norm(x, 4))
    assert found.peak == x.nbytes + 2 * 4 * 4


def test_threads_and_collection_are_as_before_also_after_an_error() -> None:
    before = torch.get_num_threads()
    seen: list[object] = []

    def fail() -> None:
        seen.extend((torch.get_num_threads(), gc.isenabled()))
        raise ZeroDivisionError

    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            allocated_bytes(fail)
        assert seen == [1, False]
        assert torch.get_num_threads() == 2
        assert gc.isenabled()
    finally:
        torch.set_num_threads(before)


def test_other_threads_are_not_counted() -> None:
    def work() -> None:
        thread = threading.Thread(target=lambda: _bytes(64 * KIB))
        thread.start()
        thread.join()
        _bytes(KIB)

    assert allocated_bytes(work) == Allocations(KIB, KIB)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_onednns_own_operations_count_too() -> None:
    x, weight = torch.ones(2, 7, 16), torch.ones(8, 16)
    linear = torch.ops.mkldnn._linear_pointwise
    assert count_flops(lambda: linear(x, weight, None, "none", [], "")) == 2 * 2 * 7 * 16 * 8
    maps, kernel = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    geometry = [1, 1], [1, 1], [1, 1], 1
    convolution = torch.ops.mkldnn._convolution_pointwise
    assert count_flops(lambda: convolution(maps, kernel, None, *geometry, "none", [], "")) == 2 * (2 * 4 * 64) * 27
