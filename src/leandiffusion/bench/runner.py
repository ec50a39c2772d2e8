"""Runs a suite: every row in every round by a process of its own, rows taking turns, each outcome written at once."""

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

from ..core.errors import BackendUnavailable, ConfigError, LeanError
from ..core.registry import did_you_mean
from ..device.host import is_host
from .process import ask
from .record import Absent, Failure, Measurement, Records, Run, Writer
from .suites import SCORES, SUITES
from .workload import Job, Row, Workload

REFERENCE = Row("reference", "plain fp32", "float32", SCORES)
"""Draws the picture that others are compared with, where the first row does not."""

QUICK = 256
"""Pixels at most in a first look."""


@dataclass(frozen=True)
class Wish:
    """What was asked for; None leaves the choice to the machine or the model.

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
    """A run that can begin: everything that was asked for is known, and the model lies on disk."""

    run: Run
    workload: Workload
    folder: str
    work: Path
    rows: list[Row]
    left_out: list[Row]
    """Rows that are not run because nobody named them."""


Tell = Callable[[str, int, int], None]
"""(what is being done, jobs done, jobs in all)"""


@contextmanager
def workplace(folder: Path | None) -> Iterator[Path]:
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


def plan(wish: Wish, work: Path, tell: Tell = lambda what, done, total: None) -> Plan:
    """Look at the machine and the wish, then make or find the model. ConfigError and BackendUnavailable for what is
    wrong with the wish come before anything that takes long."""
    _check_peers(wish.peers)
    if wish.size is not None and wish.size % 8:
        near = round(wish.size / 8) * 8
        raise ConfigError(f"--size {wish.size} is not divisible by 8: the nearest that is, is {near}.")
    tell("looking at the machine", 0, 0)
    seen = _ask("survey", device=wish.device, half=wish.dtype)
    on_cpu = is_host(seen["device"])
    load = Workload(
        model=wish.model,
        size=wish.size or 0,
        steps=wish.steps or (2 if wish.quick else 4 if on_cpu else 50),
        batch=wish.batch,
        half=seen["half"],
        device=seen["device"],
        repeat=wish.repeat or (1 if wish.quick else 3),
    )
    rows, left_out = choose_rows(wish, load)
    tell(f"getting {wish.model} ready", 0, 0)
    model = _ask("model", name=wish.model, work=str(work))
    load = replace(load, size=load.size or min(model["size"], QUICK if wish.quick else model["size"]))
    own_sizes = any(row.size for row in rows)  # then there is no one number of operations
    counted = {} if own_sizes else ask("flops", folder=model["folder"], size=load.size, batch=load.batch)
    described = {
        row.name: {"title": row.title, "about": row.describe(load.half), "peer": row.peer} for row in rows + left_out
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run = Run(wish.suite, vars(load), described, seen["environment"], counted.get("result", {}), commit(), now)
    return Plan(run, load, model["folder"], work, rows, left_out)


def choose_rows(wish: Wish, load: Workload) -> tuple[list[Row], list[Row]]:
    """The rows to run, and those left out because they run only when named. ConfigError for names that are no row."""
    from .peers import peers

    known = SUITES[wish.suite](load) + [row for peer in wish.peers for row in peers.get(peer).rows(load)]
    names = [row.name for row in known]
    for name in wish.rows:
        if name not in names and name != "all":
            raise ConfigError(
                f"unknown row {name!r} of {wish.suite}.{did_you_mean(name, names)} Rows: {', '.join(names)}; or all. "
                "Those of other programs need --peers."
            )
    if wish.rows and "all" not in wish.rows:
        return [row for row in known if row.name in wish.rows], []
    if wish.quick and not wish.rows:
        known = [
            replace(row, asked=f"--quick stops at {QUICK} px") if (row.size or 0) > QUICK else row for row in known
        ]
    usual = [row for row in known if not row.asked or "all" in wish.rows]
    return usual, [row for row in known if row not in usual]


def execute(plan: Plan, writer: Writer, tell: Tell = lambda what, done, total: None) -> Records:
    """Run every round, writing each outcome as it comes. KeyboardInterrupt leaves what was written."""
    records = Records(plan.run)

    def add(outcome: Any) -> None:
        records.outcomes.append(outcome)
        writer.add(outcome)

    for row in plan.left_out:
        add(Absent(row.name, f"{row.asked}: --rows {row.name}"))
    with tempfile.TemporaryDirectory(dir=plan.work, prefix="pictures-") as pictures:
        rounds = Rounds(plan, Path(pictures), add, tell)
        rounds.prepare()
        for number in range(plan.workload.repeat):
            rounds.run(number)
    writer.finish()
    records.complete = True
    return records


class Rounds:
    """The rounds of one run: which rows are still in it, the reference picture, and how far it has come."""

    def __init__(self, plan: Plan, pictures: Path, add: Callable[[Any], None], tell: Tell) -> None:
        self._plan, self._pictures, self._add, self._tell = plan, pictures, add, tell
        self._rows = list(plan.rows)
        first = plan.rows[0]
        plain = replace(first, name=REFERENCE.name, title=REFERENCE.title) == REFERENCE
        self._reference = first if plain else REFERENCE
        self._no_reference = "it could not be drawn"
        self._dtypes = sorted({"float32", plan.workload.half})
        self._started = False
        self._done, self._total = 0, (len(plan.rows) + 1) * plan.workload.repeat + sum(bool(r.peer) for r in plan.rows)

    def prepare(self) -> None:
        """Let peers write what they use in every round, and draw the reference picture unless the first row
        does."""
        for row in [row for row in self._rows if row.peer]:
            self._say(f"preparing {row.title}")
            self._keep(row, 0, ask("prepare", job=self._job(row).to_json()))
        if self._reference is REFERENCE and any(row.pictures for row in self._rows):
            self._tell("drawing the reference picture", self._done, self._total)
            answer = ask("draw", job=self._job(REFERENCE).to_json(), timeline=False)
            self._no_reference = answer.get("error") or answer.get("absent") or ""

    def run(self, number: int) -> None:
        """Measure the machine, then every row that is still in, once."""
        load, self._started = self._plan.workload, True
        self._say(f"round {number + 1}/{load.repeat}: the machine itself")
        ceiling = ask("ceiling", device=load.device, dtypes=self._dtypes).get("result", {})
        # Every other round backwards: a machine that slows down within a round does so for other rows each time.
        for row in list(self._rows if number % 2 == 0 else reversed(self._rows)):
            self._say(f"round {number + 1}/{load.repeat}: {row.title}")
            answer = ask("draw", job=self._job(row).to_json(), timeline=number == 0)
            if (result := self._keep(row, number, answer)) is not None:
                quality, notes = self._compare(row)
                result["notes"] = result["notes"] + notes
                self._add(Measurement(row=row.name, round=number, quality=quality, ceiling=ceiling, **result))

    def _keep(self, row: Row, number: int, answer: dict[str, Any]) -> dict[str, Any] | None:
        """The result, if there is one. Rows that this machine can not run, or that failed, leave the rounds."""
        if "result" in answer:
            return answer["result"]
        self._rows.remove(row)
        self._total -= self._plan.workload.repeat - number - self._started
        if "absent" in answer:
            self._add(Absent(row.name, answer["absent"]))
        else:
            self._add(Failure(row.name, number, answer["error"]))
        return None

    def _job(self, row: Row) -> Job:
        load, work = self._plan.workload, self._plan.work / "peers"
        if row.peer:
            work.mkdir(exist_ok=True)
        return Job(row, load, self._plan.folder, str(work), str(self._picture(row)) if row.pictures else None)

    def _picture(self, row: Row) -> Path:
        return self._pictures / f"{row.name}.npy"

    def _compare(self, row: Row) -> tuple[dict[str, float | None], list[str]]:
        """Quality of the row's picture against the plain float32 one."""
        if not row.pictures:
            return {}, []
        import numpy as np

        from ..measure.quality import psnr, ssim

        if not self._picture(self._reference).exists():
            return {}, [f"there is no plain float32 picture to compare with: {self._no_reference}"]
        picture, reference = np.load(self._picture(row)), np.load(self._picture(self._reference))
        if not np.isfinite(picture).all():
            return {}, ["its picture holds NaN or infinity"]
        try:
            return {"psnr": psnr(picture, reference), "ssim": ssim(picture, reference)}, []
        except ConfigError as error:
            return {}, [f"its picture could not be compared: {error}"]

    def _say(self, what: str) -> None:
        self._tell(what, self._done, self._total)
        self._done += 1


def commit() -> str | None:
    """The commit of this library's checkout, with '+' when its sources differ from it; None outside of one."""
    package = Path(__file__).parents[1]

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
    from .peers import peers

    for name in names:
        missing = [package for package in peers.get(name).requires if find_spec(package) is None]
        if missing:
            raise BackendUnavailable(
                f"peer {name!r} needs {', '.join(missing)}: pip install 'leandiffusion[peers]', or leave it out."
            )


def _ask(task: str, **arguments: Any) -> dict[str, Any]:
    answer = ask(task, **arguments)
    if "result" in answer:
        return answer["result"]
    if "absent" in answer:
        raise BackendUnavailable(answer["absent"])
    raise (ConfigError if answer.get("wrong") else LeanError)(answer["error"])
