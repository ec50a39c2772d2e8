"""What `leandiffusion bench` does: run a suite with a progress display, write its records, tables and plots."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from ..bench.record import Measurement, Records, Writer, read_records
from ..bench.report.compare import compare, parse_share
from ..bench.report.compare import table as changes_table
from ..bench.report.tables import markdown, rich_tables
from ..bench.run.plan import BenchOptions, Plan, Progress, plan, working_folder
from ..bench.run.rounds import execute
from ..core.aside import aside, left_over
from ..core.errors import BackendUnavailable, ConfigError
from ..core.units import format_seconds
from .report import INTERRUPTED, give, say

RESULTS = Path("bench-results")


def run(options: BenchOptions, out: Path | None, work: Path | None) -> None:
    """Run the suite; prints its tables. Finished rows are kept whatever happens.

    Options that cannot be followed raise ConfigError, BackendUnavailable or another LeanError before the first row.
    """
    check_out(out)
    with working_folder(work) as workdir, show_progress() as progress:
        ready = plan(options, workdir, progress)
        path = out or _default_path(ready)
        rescue(path.parent)
        with aside(path) as place:
            try:
                with place.open("w", encoding="utf-8") as file:
                    execute(ready, Writer(file, ready.run), progress)
            except KeyboardInterrupt:
                if not _has_rows(place):  # an earlier run of that name stays
                    raise
            os.replace(place, path)
    records = read_records(path)
    show(records, path)
    if not records.complete:
        say(f"Interrupted. The finished rows are in {path}.")
        raise typer.Exit(INTERRUPTED)


def rescue(folder: Path) -> None:
    """Keep the finished rows of runs that were killed, under the names they were meant to have where those are free."""
    for place, name in left_over(folder):
        path = folder / name
        with suppress(ConfigError, OSError):
            if path.suffix == ".jsonl" and _has_rows(place) and not path.exists():
                os.replace(place, path)
                say(f"The finished rows of a run that was killed are in {path}.")


def _has_rows(path: Path) -> bool:
    return any(isinstance(outcome, Measurement) for outcome in read_records(path).outcomes)


def check_out(out: Path | None) -> None:
    """ConfigError when records could not be written there. Makes the folder."""
    folder = (out or RESULTS / "x").parent
    if out is not None and out.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: expected a file name that ends in .jsonl.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if out is not None and out.is_dir():
            raise ConfigError(f"--out {out} is a folder: name a file that ends in .jsonl.")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"records cannot be written to {folder}: {error.strerror}. Choose another --out.") from error


def show(records: Records, path: Path) -> None:
    """Print the tables, and write them and the plots beside the records."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 160
    for table in rich_tables(records):
        console.print(table)
    page = path.with_suffix(".md")
    page.write_text(markdown(records), encoding="utf-8")
    written = [path, page]
    try:
        from ..bench.report.plots import draw_plots

        written += draw_plots(records, path.with_suffix(""))
    except BackendUnavailable as error:
        say(f"Note: {error}")
    for each in written:
        give(each)


def compare_files(old: Path, new: Path, share: str) -> bool:
    """Print what changed; whether anything became worse by more than the share."""
    from rich.console import Console

    changes = compare(read_records(old), read_records(new), parse_share(share))
    Console().print(changes_table(changes))
    worse = [change for change in changes if change.worse]
    say(f"{len(worse)} of {len(changes)} figures are worse by more than {share}." if worse else "Nothing is worse.")
    return bool(worse)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar with the time left, on standard error; a line per job where that is no terminal."""
    from rich import progress as parts
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        parts.TextColumn("{task.description}"), parts.BarColumn(), parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(), parts.TextColumn("left"), parts.TimeRemainingColumn(),
    )  # fmt: skip
    with parts.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)


def _lines() -> Progress:
    """A line per job, with the time left by those that are done, once they are a tenth."""
    began: list[float] = []

    def progress(what: str, done: int, total: int) -> None:
        if total:
            began.append(time.monotonic())
        took = began[-1] - began[0] if began else 0
        left = f", about {format_seconds(took / done * (total - done))} left" if took and 10 * done >= total else ""
        say(f"[{done}/{total}] {what}{left}" if total else what)

    return progress


def _default_path(ready: Plan) -> Path:
    workload = ready.workload
    model = Path(workload.model.replace(":", "-")).stem or "model"
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    device = workload.device.replace(":", "")
    return RESULTS / f"{ready.run.suite}-{model}-{workload.size}px-{device}-{now}.jsonl"
