"""What `leandiffusion batch` does: a list of pictures drawn into a folder, with progress and a manifest."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from tqdm.auto import tqdm

from ..batch import on_ray
from ..batch.folder import MANIFEST, Folder
from ..batch.jobs import Job, jobs_of
from ..batch.manifest import DONE, FAILED, WAITING, Manifest
from ..batch.rows import read_rows
from ..batch.work import Result, Worker
from ..core.errors import ConfigError
from ..core.units import format_seconds
from ..drawing.options import DrawingOptions, check_each
from ..drawing.techniques import TechniqueOptions
from .report import give, say
from .usage import as_usage

TOLD = 20
"""Rows whose errors are printed; the manifest has all."""

PAUSE = 30.0
"""Seconds between two lines of progress where there is no terminal."""


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster to draw on: its address, and how many pipelines there are to be."""

    address: str
    actors: int | None = None


def run(
    source: str, out: Path, defaults: DrawingOptions, techniques: TechniqueOptions, cluster: Cluster | None = None
) -> None:
    """Draw what the list `source` asks for and `out` does not hold yet; prints the manifest's path.

    typer.BadParameter for options that cannot be followed, typer.Exit with code 1 if rows failed. LeanError where the
    folder cannot be written to. What was drawn stays, whatever happens.
    """
    try:
        folder = Folder(out)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    try:
        rows = read_rows(source)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="LIST") from error
    with as_usage():
        check_each(defaults)
    try:
        techniques.check()
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    folder.prepare()
    manifest = Manifest(folder, *jobs_of(rows, defaults, techniques))
    say(f"{len(manifest.waiting)} pictures to draw, {manifest.count(DONE)} rows are done.")
    _draw(manifest, _results(manifest.waiting, folder, techniques, cluster), source)
    give(folder.path / MANIFEST)
    _say_what_failed(manifest)
    if manifest.count(FAILED):
        raise typer.Exit(1)


def _results(
    jobs: Sequence[Job], folder: Folder, techniques: TechniqueOptions, cluster: Cluster | None
) -> Iterator[Result]:
    """What becomes of the jobs, as it happens."""
    if not jobs:
        return iter(())
    if cluster is None:
        return Worker(folder, techniques, _bar_of_steps).work(jobs)
    return on_ray.work(jobs, folder, techniques, cluster.address, cluster.actors)


def _draw(manifest: Manifest, results: Iterator[Result], source: str) -> None:
    with _ending(manifest, source), _Progress(len(manifest.waiting)) as progress:
        for result in results:
            manifest.note(result)
            progress.step(result)


@contextmanager
def _ending(manifest: Manifest, source: str) -> Iterator[None]:
    """Around drawing: the manifest is written however it ends, and an interrupted user is told how to go on."""
    manifest.write()
    try:
        yield
    except KeyboardInterrupt:
        again = "the same list" if source == "-" else source
        say(f"{manifest.count(DONE)} rows are done, {manifest.count(WAITING)} left. To go on, give the same command "
            f"again, with {again}.")  # fmt: skip
        raise
    finally:
        manifest.write()


def _bar_of_steps(pipe: Any, job: Job) -> None:
    pipe.set_progress_bar_config(desc=f"Row {job.rows[0]}", leave=False, disable=None)


class _Progress:
    """A bar with the time left on a terminal, a line now and then elsewhere; and what rows say."""

    def __init__(self, count: int) -> None:
        self._bar = tqdm(total=count, desc="Pictures", unit="picture", disable=not sys.stderr.isatty() or None)
        self._count, self._done, self._start = count, 0, time.monotonic()
        self._told = self._start

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def step(self, result: Result) -> None:
        self._done += 1
        self._bar.update()
        if result.error is not None:
            self._say(f"Row {result.job.rows[0]} failed: {result.error}")
        elif result.flagged:
            self._say(f"Note: the model's safety checker blacked out row {result.job.rows[0]}. Another seed may pass.")
        now = time.monotonic()
        if self._bar.disable and now - self._told > PAUSE and self._done < self._count:
            self._told = now
            left = (now - self._start) / self._done * (self._count - self._done)
            say(f"{self._done} of {self._count} pictures, {format_seconds(left)} left")

    def _say(self, text: str) -> None:
        with tqdm.external_write_mode():
            say(text)


def _say_what_failed(manifest: Manifest) -> None:
    failed = manifest.failed()
    for entry in failed[:TOLD]:
        if "file" not in entry:  # the others were told when they failed
            say(f"Row {entry['row']} failed: {entry['error']}")
    if failed:
        say(f"{len(failed)} rows failed. {MANIFEST} says why; the same command tries them again.")
