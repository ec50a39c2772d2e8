"""Drawing the pictures of a batch that are not there yet."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

from ..core.errors import LeanError
from ..drawing.opening import Drawer, Drawn, open_model, opened_with
from ..drawing.techniques import TechniqueOptions
from .folder import CannotWrite, Folder
from .jobs import Job, told

WAIT = 0.2
"""Seconds between two looks at a picture that another process is drawing."""


@dataclass(frozen=True)
class Result:
    """What became of a job: the `seconds` it took, or the `error`."""

    job: Job
    seconds: float | None = None
    error: str | None = None
    flagged: bool = False


class Worker:
    """Draws job after job. A model stays open for as long as jobs need it."""

    def __init__(self, folder: Folder, techniques: TechniqueOptions, prepare: Callable[[Any, Job], None]) -> None:
        """`prepare` is called with the pipeline before it draws a job."""
        self._folder, self._techniques, self._prepare = folder, techniques, prepare
        self._opened: tuple[Any, Drawer | LeanError] | None = None

    def work(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Draw them; what other processes have in hand is left to them, and drawn at the end where they did not.

        A picture that cannot be drawn is a result too. CannotWrite ends the work.
        """
        left = []
        for job in jobs:
            if self._folder.is_in_hand(job.name):
                left.append(job)
            else:
                yield self._one(job)
        for job in left:
            while self._folder.is_in_hand(job.name, for_sure=True):
                time.sleep(WAIT)
            yield self._one(job)

    def _one(self, job: Job) -> Result:
        start = time.perf_counter()
        try:
            with self._folder.in_hand(job.name) as place:
                if (record := self._folder.record(job.name)) is not None:
                    return Result(job, round(sum(record.seconds.values()), 3))
                drawer = self._drawer(job)
                self._prepare(drawer.pipe, job)
                drawn = self._drawn(drawer, job)
                self._folder.keep(place, job.name, drawn.image, drawn.record)
        except CannotWrite:
            raise
        except Exception as error:
            return Result(job, error=told(error))
        return Result(job, round(time.perf_counter() - start, 3), flagged=drawn.flagged)

    def _drawn(self, drawer: Drawer, job: Job) -> Drawn:
        """The picture. Where it was denoised and cannot be decoded, its latents are kept in the folder."""
        given = job.read()
        try:
            return drawer.draw(job.options, given)
        except Exception as error:
            kept = drawer.latents_of(error, job.options, given)
            if kept is None:
                raise
            path = self._folder.keep_latents(job.name, *kept)
            later = f"leandiffusion decode {quote(str(path))} --out {quote(str(path.with_name(job.name)))}"
            raise LeanError(f"decoding failed ({told(error)}). What was denoised is kept; to go on: {later}") from error

    def _drawer(self, job: Job) -> Drawer:
        """The model that draws it, opened unless it is open. What is wrong with a model is found once."""
        key = opened_with(job.options)
        if self._opened is None or self._opened[0] != key:
            self._close()
            try:
                self._opened = key, Drawer(open_model(job.options, self._techniques))
            except LeanError as error:
                self._opened = key, error.with_traceback(None)
        found = self._opened[1]
        if isinstance(found, LeanError):
            raise found
        return found

    def _close(self) -> None:
        """Let go of the open model before another takes its room."""
        from ..device.memory import release

        if self._opened is not None:
            self._opened = None
            gc.collect()
            release()


def missing(jobs: Iterable[Job], folder: Folder) -> list[Job]:
    """The jobs whose pictures are not there whole."""
    return [job for job in jobs if folder.record(job.name) is None]
