"""Records of a run: JSON lines, written as they come, so that what was measured survives whatever comes next.

The first line describes the run, each further one an outcome: a `Measurement` of a row in a round, the reason a row is
`Absent`, or the `Failure` of a row in a round. The last line says that the run came to its end; without it the run was
interrupted, and its finished rows are as good as any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from ..core.errors import ConfigError
from ..core.wording import printable

FORMAT = 1
"""Raised when a line's meaning changes; files of other formats are refused."""


@dataclass(frozen=True)
class Run:
    """What was run, where.

    `rows`: names in order, each with its `title`, its settings in words (`about`) and its `peer` (None for this
    library). The first row that was measured is the one that others are compared with. `workload` as in
    `workload.Workload`. `flops`: floating-point operations of 'step' (a conditional and an unconditional UNet call on a
    batch) and 'decode', at the workload's size; empty where unknown. `environment` as `measure.environment` describes
    it, `commit` of this library's checkout, if it is one. `started` in ISO 8601, UTC.
    """

    suite: str
    workload: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]
    flops: Mapping[str, float]
    commit: str | None
    started: str


@dataclass(frozen=True)
class Measurement:
    """A row drawn in one round, in a process of its own.

    `seconds`: 'load' (open the model and switch techniques on), 'prepare' (the warm-up call beyond what a call takes:
    compiling, tracing, autotuning), 'text', 'step' (median of the measured steps but the first), 'denoise' (all of
    them), 'decode'; stages that were not run are left out. `steps`: seconds of each measured step.
    `peaks`: most bytes in physical memory, per stage, of the process ('load', 'warm-up', 'text', 'denoise', 'decode');
    `allocated` and `reserved` the same of CUDA's allocator, empty without CUDA. `timeline`: (seconds since the process
    began to load, bytes, stage), in the first round only. `quality`: 'psnr' in dB (None where the pictures are
    identical) and 'ssim' against the plain float32 picture. `ceiling`: FLOP/s of this machine in this round, by dtype
    then by 'matmul' and 'conv'. `notes`: what was left out or warned of.
    """

    row: str
    round: int
    seconds: Mapping[str, float]
    steps: list[float]
    peaks: Mapping[str, int]
    dtype: str
    allocated: Mapping[str, int] = field(default_factory=dict)
    reserved: Mapping[str, int] = field(default_factory=dict)
    timeline: list[tuple[float, int, str]] = field(default_factory=list)
    quality: Mapping[str, float | None] = field(default_factory=dict)
    ceiling: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Most bytes at any time: of CUDA's reserved memory where the row ran on CUDA, else of the process."""
        return max((self.reserved or self.peaks).values(), default=0)


@dataclass(frozen=True)
class Absent:
    """A row that this machine cannot run, and why."""

    row: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """A row that crashed or ran out of memory in a round."""

    row: str
    round: int
    error: str


Outcome = Measurement | Absent | Failure
_KINDS: dict[str, type[Any]] = {"measurement": Measurement, "absent": Absent, "failure": Failure}


@dataclass
class Records:
    """A run with its outcomes in order of time."""

    run: Run
    outcomes: list[Outcome] = field(default_factory=list)
    complete: bool = False

    def measured(self, row: str) -> list[Measurement]:
        """The row's measurements in order of rounds."""
        return [o for o in self.outcomes if isinstance(o, Measurement) and o.row == row]

    def trouble(self, row: str) -> str | None:
        """Why the row has no measurement, or what happened to it; None when all is well."""
        for outcome in self.outcomes:
            if outcome.row == row and not isinstance(outcome, Measurement):
                return outcome.reason if isinstance(outcome, Absent) else f"failed: {outcome.error}"
        return None

    @property
    def base(self) -> str | None:
        """Name of the row that others are compared with: the first that was measured."""
        return next((name for name in self.run.rows if self.measured(name)), None)


class Writer:
    """Appends lines to an open text file, each on disk before the next row begins."""

    def __init__(self, file: IO[str], run: Run) -> None:
        self._file = file
        self._line("run", {"format": FORMAT, **asdict(run)})

    def add(self, outcome: Outcome) -> None:
        """Write one outcome."""
        self._line(type(outcome).__name__.lower(), asdict(outcome))

    def finish(self) -> None:
        """Say that the run came to its end."""
        self._line("end", {})

    def _line(self, kind: str, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, **values}, allow_nan=False) + "\n")
        self._file.flush()


def read_records(path: Path) -> Records:
    """Read a file of records. ConfigError, naming the line, for anything that `Writer` would not have written.

    A last line that was cut off in writing is left out.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}.") from error
    records: Records | None = None
    for number, line in enumerate(lines, 1):
        try:
            values = _seen(json.loads(line))
            kind = values.pop("kind")
        except (ValueError, KeyError, AttributeError, TypeError):
            if records is not None and number == len(lines):
                break
            raise ConfigError(f"{path}, line {number} is not a record: expected a JSON object with a 'kind'.") from None
        records = _take(records, kind, values, f"{path}, line {number}")
    if records is None:
        raise ConfigError(f"{path} is empty: expected the records of a `leandiffusion bench` run.")
    return records


def _seen(value: Any) -> Any:
    """The same with the control characters of its texts written out: they will stand in a terminal's tables."""
    match value:
        case str():
            return printable(value)
        case list():
            return [_seen(each) for each in value]
        case dict():
            return {printable(name): _seen(each) for name, each in value.items()}
        case _:
            return value


def _take(records: Records | None, kind: str, values: dict[str, Any], where: str) -> Records:
    if records is None:
        if kind != "run" or values.pop("format", None) != FORMAT:
            raise ConfigError(f"{where} does not begin the records of a run in format {FORMAT}: measure anew.")
        return Records(_make(Run, values, where))
    if kind == "end":
        records.complete = True
    elif kind in _KINDS:
        records.outcomes.append(_make(_KINDS[kind], values, where))
    else:
        raise ConfigError(f"{where} is of unknown kind {kind!r}, expected {', '.join(_KINDS)} or end.")
    return records


def _make(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    known = {f.name for f in fields(cls)}
    try:
        return cls(**{name: value for name, value in values.items() if name in known})
    except TypeError as error:
        raise ConfigError(f"{where} is not a record of kind {cls.__name__.lower()!r}: {error}.") from None
