"""What a run consists of, settled before it begins: the machine, the rows, and the model on disk."""

from __future__ import annotations

import datetime
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...core.errors import BackendUnavailable, ConfigError, LeanError
from ...core.registry import did_you_mean
from ...device.host import is_host
from ...measure.environment import package_version
from ..peers import peers
from ..record import Run
from ..suites import suites
from ..workload import Row, Workload
from . import process

QUICK = 256
"""Largest side of the pictures with `--quick`, in pixels."""


@dataclass(frozen=True)
class BenchOptions:
    """The options of `bench SUITE`; None leaves the choice to the machine or the model.

    `rows` are names, or 'all' for those too that only run when named; empty for the usual ones. `peers` are names.
    """

    suite: str
    model: str
    size: int | None = None
    steps: int | None = None
    batch: int = 1
    dtype: str | None = None
    device: str | None = None
    repeat: int | None = None
    rows: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    quick: bool = False


@dataclass
class Plan:
    """A run that can begin: its options are checked, and the model lies on disk."""

    run: Run
    workload: Workload
    checkpoint: str
    workdir: Path
    rows: list[Row]
    left_out: list[Row]
    """Rows that run only when they are named, and were not."""


Progress = Callable[[str, int, int], None]
"""Called with (what is being done, jobs done, jobs in all)."""


def ignore(what: str, done: int, total: int) -> None:
    """A progress callback that does nothing."""


@contextmanager
def working_folder(folder: Path | None) -> Iterator[Path]:
    """Where models made for a run and what peers convert lie: `folder`, which stays, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="leandiffusion-") as temporary:
            yield Path(temporary)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--work {folder}: nothing can be written there: {error.strerror}.") from error
    yield folder


def plan(options: BenchOptions, workdir: Path, progress: Progress = ignore) -> Plan:
    """Look at the machine, check the options, then make or find the model.

    ConfigError and BackendUnavailable for options that cannot be followed come before anything that takes long.
    """
    _check_peers(options.peers)
    if options.size is not None and options.size % 8:
        near = round(options.size / 8) * 8
        raise ConfigError(f"--size {options.size} is not divisible by 8: the nearest that is, is {near}.")
    progress("looking at the machine", 0, 0)
    seen = _result_of("survey", device=options.device, half=options.dtype)
    on_cpu = is_host(seen["device"])
    workload = Workload(
        model=options.model,
        size=options.size or 0,
        steps=options.steps or (2 if options.quick else 4 if on_cpu else 50),
        batch=options.batch,
        half=seen["half"],
        device=seen["device"],
        repeat=options.repeat or (1 if options.quick else 3),
    )
    declared = [Row.from_json(row) for row in seen["declared"].get(options.suite, ())]
    rows, left_out = choose_rows(options, workload, declared)
    progress(f"getting {options.model} ready", 0, 0)
    model = _result_of("model", name=options.model, workdir=str(workdir))
    workload = replace(workload, size=workload.size or min(model["size"], QUICK if options.quick else model["size"]))
    checkpoint, size = model["checkpoint"], workload.size
    counted: dict[str, Any] = {}
    if not suites.get(options.suite).own_sizes:  # with several sizes there is no one number of operations
        counted = process.run_task("flops", checkpoint=checkpoint, size=size, batch=workload.batch)
    described = {
        row.name: {"title": row.title, "about": row.describe(workload.half), "peer": row.peer}
        for row in rows + left_out
    }
    versions = {peer: package_version(peers.get(peer).requires[0]) for peer in options.peers}
    environment = {**seen["environment"], "versions": {**seen["environment"].get("versions", {}), **versions}}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run = Run(options.suite, vars(workload), described, environment, counted.get("result", {}), commit(), now)
    return Plan(run, workload, checkpoint, workdir, rows, left_out)


def choose_rows(options: BenchOptions, workload: Workload, declared: Sequence[Row] = ()) -> tuple[list[Row], list[Row]]:
    """The rows to run, and those left out because they run only when named. ConfigError for unknown names.

    `declared` are the rows that techniques declare for this suite.
    """
    known = suites.get(options.suite).rows(workload, declared)
    known += [row for peer in options.peers for row in peers.get(peer).rows(workload)]
    names = [row.name for row in known]
    for name in options.rows:
        if name not in names and name != "all":
            raise ConfigError(
                f"unknown row {name!r} of {options.suite}.{did_you_mean(name, names)} Rows: {', '.join(names)}; or "
                "all. Those of other programs need --peers."
            )
    if options.rows and "all" not in options.rows:
        return [row for row in known if row.name in options.rows], []
    if options.quick and not options.rows:
        known = [
            replace(row, asked=f"--quick stops at {QUICK} px") if (row.size or 0) > QUICK else row for row in known
        ]
    usual = [row for row in known if not row.asked or "all" in options.rows]
    return usual, [row for row in known if row not in usual]


def commit() -> str | None:
    """The commit of this library's checkout, with '+' when its sources differ from it; None outside of one."""
    package = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        try:
            found = subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return found.stdout.strip() if found.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    name = git("rev-parse", "--short=10", "HEAD")
    return f"{name}+" if name and git("status", "--porcelain", "--", ".") else name


def _check_peers(names: Sequence[str]) -> None:
    for name in names:
        missing = [package for package in peers.get(name).requires if find_spec(package) is None]
        if missing:
            raise BackendUnavailable(
                f"peer {name!r} needs {', '.join(missing)}: pip install 'leandiffusion[peers]', or leave it out."
            )


def _result_of(task: str, **arguments: Any) -> dict[str, Any]:
    answer = process.run_task(task, **arguments)
    if "result" in answer:
        return answer["result"]
    if "absent" in answer:
        raise BackendUnavailable(answer["absent"])
    raise (ConfigError if answer.get("wrong") else LeanError)(answer["error"])
