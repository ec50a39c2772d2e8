"""Files and folders written under hidden temporary names until they are complete.

A temporary name is `.NAME.HOST-PID-NUMBER.part`. What killed processes leave behind is removed by the next process that
writes into the same folder. Files of other hosts are not touched: whether their processes still run cannot be told.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,10})-(?P<number>\d+)\.part")
_LONGEST = 200  # characters of the name itself: file systems take 255 bytes

_numbers = itertools.count()
_own: set[str] = set()  # names made by this process: an earlier one may have had its pid, as in containers


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for what will be renamed to it; removed at the end if it is still there."""
    place = new_place(path)
    try:
        yield place
    finally:
        give_up(place)


def new_place(path: Path) -> Path:
    """Reserve a temporary path beside `path` until `give_up`, after removing what dead processes left in the folder."""
    sweep(path.parent)
    place = path.with_name(f".{path.name[:_LONGEST]}.{_host()}-{os.getpid()}-{next(_numbers)}.part")
    _own.add(place.name)
    return place


def give_up(place: Path) -> None:
    """Remove what is left at a path of `new_place`."""
    _own.discard(place.name)
    with suppress(OSError):
        remove(place)


def is_aside(name: str) -> bool:
    """Whether this is such a temporary name."""
    return _NAME.fullmatch(name) is not None


def is_of_this_host(name: str) -> bool:
    """Whether a temporary name was made on this host, so that it can be told whether its process still runs."""
    match = _NAME.fullmatch(name)
    return match is not None and match["host"] == _host()


def has_dead_owner(name: str) -> bool:
    """Whether a temporary name belongs to a process of this host that no longer runs."""
    match = _NAME.fullmatch(name)
    if match is None or match["host"] != _host() or os.name != "posix":  # on Windows os.kill would end the process
        return False
    pid = int(match["pid"])
    return name not in _own if pid == os.getpid() else not _is_running(pid)


def left_over(folder: Path) -> list[tuple[Path, str]]:
    """What dead processes left in `folder` under temporary names, each with its final name."""
    with suppress(OSError):
        names = [name for name in sorted(os.listdir(folder)) if has_dead_owner(name)]
        return [(folder / name, match["name"]) for name in names if (match := _NAME.fullmatch(name))]
    return []


def sweep(folder: Path) -> None:
    """Remove what dead processes left in `folder` under temporary names; what cannot be removed stays."""
    for path, _ in left_over(folder):
        with suppress(OSError):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def publish(place: Path, path: Path) -> None:
    """Rename the file at `place` to `path`; FileExistsError if that exists. `place` may stay as a second link."""
    try:
        os.link(place, path)  # fails where `path` exists, so that concurrent programs do not replace each other's
    except FileExistsError:
        raise
    except OSError:  # a file system without links: an existence test has to do
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(place, path)


def flush(path: Path) -> None:
    """fsync a file, or a folder's list of names. OSError when a file cannot be synced."""
    try:
        opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(opened)
    except OSError:
        if not path.is_dir():  # some network file systems cannot sync folders
            raise
    finally:
        os.close(opened)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


@functools.cache
def _host() -> str:
    """This host, and on Linux this container: a pid only has a meaning within one."""
    container = ""
    with suppress(OSError):
        container = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {container}".encode()).hexdigest()[:8]
