"""Memory of this process, now and at its peak. `device.memory` has that of accelerators.

On Linux the figures are the kernel's `VmRSS` and `VmHWM` (proc_pid_status(5)), and the peak can be set back between
two pieces of work. Elsewhere the peak is `getrusage`'s and only ever rises.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..device.memory import reset_peaks

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def rss() -> int | None:
    """Bytes of this process in physical memory now; None where the system does not say."""
    return _status("VmRSS")


def peak_rss() -> int | None:
    """Most bytes this process had in physical memory since it began, or since `reset_peak`; None where unknown."""
    recorded = _status("VmHWM")
    return recorded if recorded is not None else _rusage_peak()


def reset_peak() -> bool:
    """Let every peak start from what is held now, those of accelerators too. False where the process peak cannot be set
    back (not Linux, or /proc is read-only): `peak_rss` then still counts from the start of the process."""
    reset_peaks()
    try:
        _CLEAR_REFS.write_text("5")  # 5 sets VmHWM to VmRSS, see proc_pid_clear_refs(5)
    except OSError:
        return False
    return True


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
