"""The memory limit of this process's control group, such as a container's: cgroup v2, or v1 where that has one.

cgroups(7); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the Linux kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_GROUPS = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # v1 has no word for it, but a number of about 2^63


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that the group may take, and that it has taken; files that the system would give up at once not counted."""

    limit: int
    used: int

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        return max(self.limit - self.used, 0)


def memory_limit() -> MemoryLimit | None:
    """The narrowest limit of this process's group and the groups around it; None where there is none."""
    found = (limit for folder, names in _folders() if (limit := _read_limit(folder, *names)) is not None)
    return min(found, key=lambda each: each.left, default=None)


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _folders() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Folders of the group and of those around it, and the names that their files have."""
    for line in _text(_GROUPS).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            roots, names = (_ROOT, _ROOT / "unified"), V2
        elif "memory" in controllers.split(","):
            roots, names = (_ROOT / "memory",), V1
        else:
            continue
        for root in roots:
            path = Path(group)
            # Inside a container its own group is mounted as the root.
            yield from ((root / str(each).lstrip("/"), names) for each in (path, *path.parents))


def _read_limit(folder: Path, limit_file: str, used_file: str, cached: str) -> MemoryLimit | None:
    limit, used = _text(folder / limit_file).strip(), _text(folder / used_file).strip()
    if not limit.isdigit() or not used.isdigit() or int(limit) >= _UNLIMITED:
        return None
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    given_up = stat.get(cached, "0").strip()
    return MemoryLimit(int(limit), int(used) - int(given_up) if given_up.isdigit() else int(used))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
