"""From rows to pictures to draw: completed, checked, each once, under names that are the same whenever the list is
drawn again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.errors import LeanError
from ..core.wording import readable
from ..drawing.given import Given, pictures_of
from ..drawing.opening import opened_with
from ..drawing.options import DrawingOptions, ResolvedOptions, resolve
from ..drawing.techniques import TechniqueOptions
from .fingerprints import Fingerprints, name_of, seed_for, what_decides
from .rows import Row


@dataclass(frozen=True)
class Job:
    """A picture to draw: its file's name, and the numbers of the rows that ask for it."""

    name: str
    options: ResolvedOptions
    rows: tuple[int, ...]
    decides: Mapping[str, Any] = field(default_factory=dict)
    """What the name was made from (`fingerprints.what_decides`)."""

    def read(self) -> Given:
        """The pictures that are drawn with. LeanError where one has changed since the list was read."""
        given = Given.read(self.options)
        then = [self.decides.get("image"), self.decides.get("mask"), *self.decides.get("control_image", ())]
        now = [given.sha256[name] for name in pictures_of(self.options)]
        if now != [digest for digest in then if digest is not None]:
            raise LeanError("a picture that is drawn with changed while the batch ran: run it again.")
        return given


@dataclass(frozen=True)
class Wrong:
    """A row that asks for nothing that could be drawn, and why."""

    row: int
    error: str


def jobs_of(
    rows: Iterable[Row], defaults: DrawingOptions, techniques: TechniqueOptions
) -> tuple[list[Job], list[Wrong]]:
    """The pictures that the rows ask for, those of one model together; rows that ask for the same one share it.

    What a row leaves open is taken from `defaults`. A row without a seed gets one that follows from what it says, and
    from how many rows like it came before.
    """
    jobs: dict[str, Job] = {}
    wrong: list[Wrong] = []
    files, alike = Fingerprints(), Counter[str]()
    for row in rows:
        if row.options is None:
            wrong.append(Wrong(row.number, row.error or ""))
            continue
        try:
            job = _job(row.number, row.options.filled_from(vars(defaults)), techniques, files, alike)
        except Exception as error:  # of paths that no file system has, say: a row is no reason to lose the others
            wrong.append(Wrong(row.number, told(error)))
            continue
        known = jobs.get(job.name)
        jobs[job.name] = job if known is None else replace(known, rows=(*known.rows, row.number))
    return _by_model(list(jobs.values())), wrong


def told(error: Exception) -> str:
    """In one line, with the error's class if it is not one of ours."""
    text = " ".join(str(error).split())
    return readable(text if isinstance(error, LeanError) and text else f"{type(error).__name__}: {text}")


def _job(
    number: int, options: DrawingOptions, techniques: TechniqueOptions, files: Fingerprints, alike: Counter[str]
) -> Job:
    resolved = resolve(options.filled_from({"seed": 0}))
    decides = what_decides(resolved, techniques, files)
    if options.seed is None:
        like = name_of({name: value for name, value in decides.items() if name != "seed"})
        resolved = replace(resolved, seed=seed_for(decides, alike[like]))
        decides["seed"] = resolved.seed
        alike[like] += 1
    return Job(name_of(decides), resolved, (number,), decides)


def _by_model(jobs: Sequence[Job]) -> list[Job]:
    """Those that the same opened model draws together, in the order of their first rows."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        groups.setdefault(opened_with(job.options), []).append(job)
    return [job for group in groups.values() for job in group]
