"""What became of each row, as a file that is replaced as a whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .folder import Folder
from .jobs import Job, Wrong
from .work import Result

DONE, FAILED, WAITING = "done", "failed", "waiting"

PAUSE = 5.0
"""Seconds between two writings, and so many times as long as one takes: it grows with the list."""
_SHARE = 20


class Manifest:
    """A line for each row: its number, `status` ('done', 'failed' or 'waiting'), `file`, `seed`, `error`, and the
    `seconds` that drawing took. Pictures are the truth: what is there is done, whatever a former manifest says."""

    def __init__(self, folder: Folder, jobs: Iterable[Job], wrong: Iterable[Wrong]) -> None:
        """Looks which pictures are there. Errors of a former call stay until their rows are tried again."""
        self._folder, self._written, self._pause = folder, 0.0, 0.0
        former = {(entry.get("row"), entry.get("file")): entry for entry in folder.read_manifest()}
        self._entries: dict[int, dict[str, Any]] = {}
        self.waiting: list[Job] = []
        for job in jobs:
            record = folder.record(job.name)
            if record is None:
                self.waiting.append(job)
            for row in job.rows:
                if record is not None:
                    self._put(job, row, DONE, seconds=round(sum(record.seconds.values()), 3))
                elif (before := former.get((row, job.name), {})).get("status") == FAILED:
                    self._put(job, row, FAILED, error=before.get("error"))
                else:
                    self._put(job, row, WAITING)
        for each in wrong:
            self._entries[each.row] = {"row": each.row, "status": FAILED, "error": each.error}

    def note(self, result: Result) -> None:
        """What became of a job, in all its rows; written to disk now and then."""
        for row in result.job.rows:
            if result.error is None:
                self._put(result.job, row, DONE, seconds=result.seconds)
            else:
                self._put(result.job, row, FAILED, error=result.error)
        if time.monotonic() - self._written > self._pause:
            self.write()

    def write(self) -> None:
        """Write it now."""
        start = time.monotonic()
        self._folder.write_manifest([self._entries[row] for row in sorted(self._entries)])
        self._written = time.monotonic()
        self._pause = max(PAUSE, _SHARE * (self._written - start))

    def count(self, status: str) -> int:
        """How many rows have it."""
        return sum(entry["status"] == status for entry in self._entries.values())

    def failed(self) -> Sequence[Mapping[str, Any]]:
        """The lines of rows that failed."""
        return [self._entries[row] for row in sorted(self._entries) if self._entries[row]["status"] == FAILED]

    def _put(self, job: Job, row: int, status: str, **more: Any) -> None:
        said = {"row": row, "status": status, "file": job.name, "seed": job.options.seed, **more}
        self._entries[row] = {name: value for name, value in said.items() if value is not None}
