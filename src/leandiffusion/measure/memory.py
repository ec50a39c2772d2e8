"""Memory of this process, now and at its peak; of the CUDA devices it uses, when it uses any.

On Linux the figures are the kernel's `VmRSS` and `VmHWM` (proc_pid_status(5)), and the peak can be set back between
two pieces of work. Elsewhere the peak is `getrusage`'s and only ever rises.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ..core.malloc import trim

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class CudaMemory:
    """Peak bytes on one CUDA device: in tensors (`allocated`), and taken from the driver for them (`reserved`)."""

    device: int
    allocated: int
    reserved: int


def rss() -> int | None:
    """Bytes of this process in physical memory now; None where the system does not say."""
    return _status("VmRSS")


def peak_rss() -> int | None:
    """Most bytes this process had in physical memory since it began, or since `reset_peak`; None where unknown."""
    recorded = _status("VmHWM")
    return recorded if recorded is not None else _rusage_peak()


def reset_peak() -> bool:
    """Let every peak start from what is held now. False where the process peak can not be set back (not Linux, or
    /proc is read-only): `peak_rss` then still counts from the start of the process."""
    torch = _torch_with_cuda()
    if torch is not None:
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    try:
        _CLEAR_REFS.write_text("5")  # 5 sets VmHWM to VmRSS, see proc_pid_clear_refs(5)
    except OSError:
        return False
    return True


def peak_cuda() -> list[CudaMemory]:
    """Peaks of every CUDA device this process has used; empty without CUDA. Never starts CUDA itself."""
    torch = _torch_with_cuda()
    if torch is None:
        return []
    peaks = [
        CudaMemory(index, torch.cuda.max_memory_allocated(index), torch.cuda.max_memory_reserved(index))
        for index in range(torch.cuda.device_count())
    ]
    return [peak for peak in peaks if peak.reserved]


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024  # the kernel's "kB" are KiB
    return None


def _rusage_peak() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def _torch_with_cuda():
    """torch, if this process imported it and started CUDA; asking must neither import torch nor start CUDA."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had: Python's MemoryError, or what torch's allocators raise on CPU and CUDA."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)


def release() -> None:
    """Give memory that was freed back to the system: glibc's allocator and torch's on CUDA keep it otherwise."""
    torch = _torch_with_cuda()
    if torch is not None:
        torch.cuda.empty_cache()
    trim()
