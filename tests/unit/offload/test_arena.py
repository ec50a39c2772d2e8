"""The ring of bytes against a plain model of one."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leandiffusion.offload.arena import OneAtATime, Ring, RingOfEach
from leandiffusion.offload.units import ALIGNMENT

CPU = torch.device("cpu")
SIZE = 40 * ALIGNMENT


def span(ring: Ring, memory: torch.Tensor) -> tuple[int, int]:
    """Where in the ring the memory lies, rounded to what was reserved."""
    begin = memory.storage_offset()
    return begin, begin + max(-(-memory.nbytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)


@given(st.lists(st.one_of(st.none(), st.integers(0, SIZE + 10)), max_size=60))
def test_nothing_overlaps_and_all_that_fits_is_given(steps: list[int | None]) -> None:
    ring, out = Ring(SIZE, CPU), deque[tuple[int, int]]()
    for step in steps:
        if step is None:
            ring.give()
            if out:
                out.popleft()
            continue
        memory = ring.take(step)
        size = max(-(-step // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
        if memory is None:
            assert out or size > SIZE
            if out:  # neither behind the newest nor, once that is at the end, before the oldest
                oldest, newest = out[0][0], out[-1][1]
                free = [(newest, SIZE), (0, oldest)] if newest > oldest else [(newest, oldest)]
                assert all(end - begin < size for begin, end in free)
            continue
        begin, end = span(ring, memory)
        assert memory.nbytes == step
        assert begin % ALIGNMENT == 0
        assert 0 <= begin
        assert end <= SIZE
        assert all(end <= other[0] or other[1] <= begin for other in out)
        out.append((begin, end))


def test_reset_takes_everything_back() -> None:
    ring = Ring(SIZE, CPU)
    assert ring.take(SIZE) is not None
    assert ring.take(1) is None
    ring.reset()
    assert ring.take(SIZE) is not None


def test_two_units_of_half_its_size_always_fit() -> None:
    ring = Ring(2 * 64, CPU)
    for _ in range(5):
        assert ring.take(64) is not None
        assert ring.take(64) is not None
        assert ring.take(64) is None
        ring.give()
        assert ring.take(64) is not None
        ring.give()
        ring.give()


@pytest.mark.parametrize("way", ["give", "reset"])
def test_one_at_a_time_gives_fresh_memory(way: str) -> None:
    arena = OneAtATime(CPU)
    first = arena.take(1000)
    assert first is not None
    assert first.nbytes == 1000
    assert arena.take(1) is None
    getattr(arena, way)()
    second = arena.take(10)
    assert second is not None
    assert second.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()


def test_a_ring_for_each_network_has_memory_while_its_units_come() -> None:
    ring = RingOfEach({"unet": 2 * SIZE, "vae": SIZE}, CPU)
    assert ring.nbytes == 0
    for network, nbytes in (("unet", 2 * SIZE), ("vae", SIZE), ("unet", 2 * SIZE)):
        ring.turn_to(network)
        assert ring.nbytes == nbytes
        assert ring.take(nbytes) is not None
        ring.reset()
    memory = ring.take(1)
    assert memory is not None
    ring.reset()
    ring.turn_to("unet")  # it is there
    again = ring.take(1)
    assert again is not None
    assert again.data_ptr() == memory.data_ptr()
