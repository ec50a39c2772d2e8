"""Files and folders that are written aside, under hidden names that tell whose they are, until they are complete.

A name aside is `.NAME.HOST-PID-NUMBER.part`. What killed processes leave behind under such names is taken away by the
next one that writes into the same folder. What other hosts left is not touched: nobody here knows whether they live.
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
_own: set[str] = set()  # names that this process gave: an earlier one may have had its number, as in containers


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Inside, a free path beside `path` for what will get that name; what is left there at the end is taken away."""
    place = new_place(path)
    try:
        yield place
    finally:
        give_up(place)


def new_place(path: Path) -> Path:
    """A free path beside `path` for what will get that name, until `give_up`. Sweeps the folder first."""
    sweep(path.parent)
    place = path.with_name(f".{path.name[:_LONGEST]}.{_host()}-{os.getpid()}-{next(_numbers)}.part")
    _own.add(place.name)
    return place


def give_up(place: Path) -> None:
    """Take away what is left at a path of `new_place`."""
    _own.discard(place.name)
    with suppress(OSError):
        remove(place)


def is_aside(name: str) -> bool:
    """Whether a file or folder of this name is somebody's unfinished work."""
    return _NAME.fullmatch(name) is not None


def has_dead_owner(name: str) -> bool:
    """Whether a name aside was given by a process of this host that is no more."""
    match = _NAME.fullmatch(name)
    if match is None or match["host"] != _host() or os.name != "posix":  # elsewhere asking might end a process
        return False
    pid = int(match["pid"])
    return name not in _own if pid == os.getpid() else not _is_running(pid)


def left_over(folder: Path) -> list[tuple[Path, str]]:
    """What processes that are no more left aside in `folder`, and the name that each would have got."""
    with suppress(OSError):
        names = [name for name in sorted(os.listdir(folder)) if has_dead_owner(name)]
        return [(folder / name, match["name"]) for name in names if (match := _NAME.fullmatch(name))]
    return []


def sweep(folder: Path) -> None:
    """Take away what processes that are no more left aside in `folder`; what cannot be taken away stays."""
    for path, _ in left_over(folder):
        with suppress(OSError):
            remove(path)


def remove(path: Path) -> None:
    """Take away a file or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def publish(place: Path, path: Path) -> None:
    """Give the file at `place` the name `path`, unless that is taken: FileExistsError then. `place` may stay too."""
    try:
        os.link(place, path)  # fails where the name is taken, so that programs at once do not replace each other's
    except FileExistsError:
        raise
    except OSError:  # a file system without links: an existence test has to do
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(place, path)


def flush(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, reach the disk. OSError when a file's cannot."""
    try:
        opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(opened)
    except OSError:
        if not path.is_dir():  # some network file systems do not know how for folders
            raise
    finally:
        os.close(opened)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


@functools.cache
def _host() -> str:
    """This host, and on Linux this container: process numbers mean something within one only."""
    container = ""
    with suppress(OSError):
        container = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {container}".encode()).hexdigest()[:8]
