"""Replacing files of a folder, and of folders in it, all at once as far as a file system can.

The new files are written aside, inside the folders where they belong, and flushed to the disk. Then a journal appears
in the outer folder, the files are renamed one by one, and the journal is removed. A process that is killed before the
journal is there leaves the old files; afterwards, opening the folder completes what the journal says (`finish_saving`).
A component's folder has its own journal while it holds old and new files, so that it may be opened by itself, also
through a link.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from .aside import flush, give_up, has_dead_owner, is_aside, new_place, publish, remove
from .errors import MalformedFile, WeightsError
from .fork import Lock
from .jsons import BadJSON, parse_json

JOURNAL = ".leandiffusion-saving.json"
_REMOVABLE = (".safetensors", ".json")
_PATIENCE = 5.0  # seconds for a process that is renaming its files, which takes milliseconds
_PUTTING = Lock()

Stale = Callable[[Sequence[str], Sequence[str]], Sequence[str]]
"""From the names in a folder and those that are added: which of the former to delete."""


@dataclass(frozen=True)
class _Journal:
    """`files` in the temporary folder `aside`, name -> size; `parts`: folder name -> its temporary folder."""

    aside: str
    files: dict[str, int]
    stale: list[str] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)


class Replacement:
    """Inside `with Replacement(folder) as new`, files written to `new.place()` replace those of `folder`, and those
    written to `new.place(part)` those of that folder in it, at the end and all at once.

    An exception leaves all as it was. Other files stay, but for those that `stale` names. A part that is a symbolic
    link is written where it points to.
    """

    def __init__(self, folder: Path, stale: Stale) -> None:
        self._folder = folder
        self._stale = stale
        self._places: dict[str, Path] = {}
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        try:
            self.place()
        except BaseException:
            self._clear()
            raise
        return self

    def place(self, part: str = "") -> Path:
        """An empty folder for the new files of the folder itself, or of the folder `part` in it."""
        if part not in self._places:
            folder = self._folder / part
            self._make(folder)
            finish_saving(folder)
            self._places[part] = new_place(folder / "saving")
            self._places[part].mkdir()
        return self._places[part]

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._commit()
                finish_saving(self._folder)
        finally:
            if not self._is_under_way():  # else the temporary files complete the save when the folder is next opened
                self._clear()

    def _is_under_way(self) -> bool:
        with suppress(WeightsError):
            journal = _read(self._folder)
            return journal is not None and journal.aside == self._places[""].name
        return False

    def _clear(self) -> None:
        for place in self._places.values():
            give_up(place)
        for folder in reversed(self._made):
            with suppress(OSError):  # only empty ones go
                folder.rmdir()

    def _make(self, folder: Path) -> None:
        above = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made += reversed(above)

    def _commit(self) -> None:
        for part, place in self._places.items():
            for path in place.rglob("*"):
                flush(path)
            if part:
                self._write(place, self._journal(place))
            flush(place)
        place = self._places[""]
        parts = {part: each.name for part, each in self._places.items() if part}
        journal = self._journal(place, parts)
        self._write(place, journal)
        while True:
            try:
                publish(place / JOURNAL, self._folder / JOURNAL)
                break
            except FileExistsError:  # another process is putting its files in place
                finish_saving(self._folder)
        flush(self._folder)

    def _journal(self, place: Path, parts: dict[str, str] | None = None) -> _Journal:
        found = [path for path in place.rglob("*") if path.is_file()]
        files = {path.relative_to(place).as_posix(): path.stat().st_size for path in found}
        there = sorted(os.listdir(place.parent))
        return _Journal(place.name, files, list(self._stale(there, list(files))), parts or {})

    def _write(self, place: Path, journal: _Journal) -> None:
        (place / JOURNAL).write_text(json.dumps(asdict(journal)), encoding="utf-8")
        flush(place / JOURNAL)


def finish_saving(folder: Path) -> None:
    """Complete an interrupted replacement of a folder's files; no-op where there is none.

    Waits a few seconds for a process that is completing it. MalformedFile when what the journal names is gone,
    WeightsError when the folder cannot be written to.
    """
    if not os.path.lexists(folder / JOURNAL):
        return
    with _PUTTING:
        journal = _read(folder)
        until = time.monotonic() + _PATIENCE
        while journal and not _ours_to_finish(journal.aside) and time.monotonic() < until:
            time.sleep(0.02)
            journal = _read(folder)
        if journal:
            try:
                _put_in_place(folder, journal)
            except WeightsError:
                raise
            except OSError as error:
                raise WeightsError(
                    f"saving into {folder} was cut short, so old and new files are mixed, and cannot be finished now "
                    f"({error.strerror or error}). Make the folder writable, with room on its disk, then open it again."
                ) from error


def _ours_to_finish(name: str) -> bool:
    return has_dead_owner(name) or f"-{os.getpid()}-" in name  # within this process the lock has waited for the other


def _put_in_place(folder: Path, journal: _Journal) -> None:
    for part, name in journal.parts.items():
        inner = folder / part / name / JOURNAL
        finish_saving(folder / part)
        while inner.exists():
            try:
                publish(inner, folder / part / JOURNAL)
            except FileExistsError:  # another process is putting its files in place
                finish_saving(folder / part)
            except FileNotFoundError:  # another process was faster
                break
            else:
                finish_saving(folder / part)
                break
    place = folder / journal.aside
    for name, size in journal.files.items():
        _put(place / name, folder / name, size)
    for name in journal.stale:
        (folder / name).unlink(missing_ok=True)
    flush(folder)
    remove(place)
    (folder / JOURNAL).unlink(missing_ok=True)


def _put(source: Path, target: Path, size: int) -> None:
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except FileNotFoundError:
        if not target.is_file() or target.stat().st_size != size:
            raise _mixed(target.parent, f"the new {target.name} is gone") from None


def _read(folder: Path) -> _Journal | None:
    """The journal of a folder, None when it is gone. It is not trusted: names that lead elsewhere are refused."""
    try:
        text = (folder / JOURNAL).read_bytes()
    except FileNotFoundError:
        return None
    try:
        values: Any = parse_json(text)
        journal = _Journal(values["aside"], values["files"], values["stale"], values["parts"])
        names = [*journal.files.keys(), *journal.stale, *journal.parts.keys()]
        inside = all(_is_inside(name) for name in names) and all(len(Path(part).parts) == 1 for part in journal.parts)
        asides = all(is_aside(name) and _is_inside(name) for name in (journal.aside, *journal.parts.values()))
        if inside and asides and all(name.endswith(_REMOVABLE) and "/" not in name for name in journal.stale):
            return journal
    except (BadJSON, KeyError, TypeError, AttributeError):
        pass
    raise _mixed(folder, f"{JOURNAL} is invalid")


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", ":", "\0"}


def _mixed(folder: Path, why: str) -> MalformedFile:
    return MalformedFile(
        f"saving into {folder} was cut short and cannot be finished ({why}): old and new files are mixed there. Save "
        f"or download it again into another folder, or remove {JOURNAL} from it if you know its files belong together."
    )
