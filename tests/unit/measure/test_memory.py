from __future__ import annotations

import mmap
import sys

import pytest

from leandiffusion.measure import memory

MIB = 2**20


def test_the_peak_is_at_least_what_is_held_now():
    held, peak = memory.rss(), memory.peak_rss()
    assert peak is not None
    assert peak > MIB  # bytes, not KiB: no interpreter fits in one MiB
    if held is not None:
        assert peak >= held > MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process set its peak back")
def test_the_peak_follows_an_allocation_and_can_be_set_back():
    if not memory.reset_peak():
        pytest.skip("/proc/self/clear_refs cannot be written here")
    before = memory.peak_rss()
    block = mmap.mmap(-1, 64 * MIB)  # from the system: an allocator may hand out memory that is resident already
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start] = 1  # untouched pages are not in memory
    during = memory.peak_rss()
    block.close()
    assert memory.reset_peak()
    after = memory.peak_rss()
    assert before is not None
    assert during is not None
    assert after is not None
    # Other threads of this process may free or take a little meanwhile: half the block is far above that.
    assert during - before > 32 * MIB
    assert during - after > 32 * MIB


def test_without_proc_the_peak_comes_from_getrusage(monkeypatch, tmp_path):
    from_proc = memory.peak_rss()
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "missing")
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "missing" / "too")
    assert memory.rss() is None
    assert memory.reset_peak() is False
    peak = memory.peak_rss()
    assert from_proc is not None
    assert peak is not None
    assert peak >= from_proc // 2  # the same unit; VmHWM may have been set back, ru_maxrss never is
