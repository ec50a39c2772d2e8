"""Memory of accelerators, on machines that are made up; and what counts as running out of it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leandiffusion.device import memory
from leandiffusion.device.memory import DeviceMemory, free_memory, is_out_of_memory, peak_memory, reserved_memory


def test_asking_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert peak_memory() == []
    memory.reset_peaks()
    memory.release()
    assert "torch" not in sys.modules


def machine(started: bool, **books: Any) -> Any:
    """torch on a machine with two XPUs, with this module of the type and these figures of torch.accelerator."""
    kind, emptied = torch.device("xpu"), []
    accelerator = SimpleNamespace(current_accelerator=lambda: kind, device_count=lambda: 2, **books)
    module = SimpleNamespace(is_initialized=lambda: started, empty_cache=lambda: emptied.append(kind))
    return SimpleNamespace(accelerator=accelerator, get_device_module=lambda device: module, emptied=emptied)


def test_peaks_are_by_device_and_only_of_those_that_were_used(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[int] = []
    there = machine(
        True, max_memory_reserved=lambda i: (0, 20)[i], max_memory_allocated=lambda i: (0, 10)[i],
        memory_reserved=lambda device: 5, reset_peak_memory_stats=reset.append,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", there)
    assert peak_memory() == [DeviceMemory("xpu:1", allocated=10, reserved=20)]
    assert reserved_memory(torch.device("xpu", 1)) == 5
    memory.reset_peaks()
    memory.release()
    assert (reset, there.emptied) == ([0, 1], [torch.device("xpu")])


def test_an_accelerator_that_was_not_started_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    there = machine(False)
    monkeypatch.setitem(sys.modules, "torch", there)
    assert peak_memory() == []
    assert reserved_memory(torch.device("xpu")) == 0
    memory.reset_peaks()
    memory.release()
    assert there.emptied == []


def test_an_allocator_without_books_gives_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise RuntimeError("Allocator for mps is not a DeviceAllocator.")

    names = ("max_memory_reserved", "max_memory_allocated", "memory_reserved", "reset_peak_memory_stats")
    monkeypatch.setitem(sys.modules, "torch", machine(True, **dict.fromkeys(names, refuse)))
    assert peak_memory() == []
    assert reserved_memory(torch.device("mps")) == 0
    memory.reset_peaks()


def test_free_memory_is_told_where_torch_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(mem_get_info=lambda d: (1, 2)))
    assert free_memory(torch.device("xpu")) == (1, 2)
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    assert free_memory(torch.device("mps")) is None


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_is_told_from_other_errors(error: BaseException, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one
