"""What is pinned, by which way, and what that locks. The driver is made up; sizes are exact."""

from __future__ import annotations

import mmap

import pytest
import torch

from leandiffusion.device import pinning
from leandiffusion.device.pinning import host_block, locked_bytes, staging_buffer

CPU, CUDA, XPU, MPS = (torch.device(name) for name in ("cpu", "cuda:0", "xpu:0", "mps"))
PAGE = mmap.PAGESIZE


class Driver:
    """Remembers what is locked; locks nothing when `full`."""

    def __init__(self, *, full: bool = False) -> None:
        self.locked: dict[int, int] = {}
        self.full = full

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        if self.full:
            return 2
        self.locked[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> None:  # noqa: N802
        del self.locked[address]


@pytest.mark.parametrize(("nbytes", "pages"), [(1, 1), (2, 2), (PAGE, 2), (PAGE + 1, 2), (PAGE + 2, 3)])
def test_in_place_the_pages_that_are_touched_are_locked(nbytes: int, pages: int) -> None:
    most = max(len(range((at := start) // PAGE, (at + nbytes - 1) // PAGE + 1)) for start in range(PAGE))
    assert locked_bytes(nbytes, CUDA) == most * PAGE == pages * PAGE


@pytest.mark.parametrize(("nbytes", "locked"), [(1, 1), (4096, 4096), (4097, 8192), (65 << 20, 128 << 20)])
def test_torchs_own_way_locks_the_next_power_of_two(nbytes: int, locked: int) -> None:
    assert locked_bytes(nbytes, XPU) == locked


@pytest.mark.parametrize("device", [CPU, MPS, torch.device("meta")])
def test_where_nothing_can_be_pinned_nothing_is(device: torch.device) -> None:
    assert locked_bytes(1000, device) == 0
    block = host_block(1000, device, 10**9)
    assert (block.memory.nbytes, block.locked) == (1000, 0)
    block.release()
    assert not staging_buffer(10, device).is_pinned()


def test_a_block_is_locked_within_the_budget_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(pinning, "_runtime", lambda: driver)
    block = host_block(PAGE, CUDA, 2 * PAGE)
    assert driver.locked == {block.memory.data_ptr(): PAGE}
    assert block.locked == 2 * PAGE
    assert host_block(PAGE, CUDA, 2 * PAGE - 1).locked == 0
    assert host_block(0, CUDA, 2 * PAGE).locked == 0
    assert len(driver.locked) == 1
    block.release()
    assert driver.locked == {}


def test_a_driver_that_locks_no_more_leaves_plain_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "_runtime", lambda: Driver(full=True))
    block = host_block(PAGE, CUDA, 2 * PAGE)
    assert (block.memory.nbytes, block.locked) == (PAGE, 0)
    block.release()  # nothing to unlock
