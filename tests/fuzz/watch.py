"""Runs cases and watches them: how each ended, how long it took, what it left in memory."""

from __future__ import annotations

import faulthandler
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from leandiffusion.core.errors import LeanError
from leandiffusion.core.units import format_bytes
from leandiffusion.measure.memory import peak_rss

from .targets import Target, make_targets

SECONDS = 10.0  # of the processor that a case may take; they take milliseconds
MEMORY = 200_000_000  # bytes that the process's peak may grow by over all cases
LONGEST = 499  # characters of a message


class Hang(BaseException):
    """A case took too long. Not an Exception, so that nothing that is tested handles it."""


@dataclass
class Report:
    """What came of the cases. `wrong` holds the cases that did not end as they should, by how they ended."""

    cases: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    grown: int = 0

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {name}" for name, count in self.ends.most_common())
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.kinds.items()))
        slow = f"slowest {self.slowest[0]:.1f} s ({self.slowest[1]})"
        head = f"{self.cases} cases ({kinds}): {ends}; {slow}; peak memory grew by {format_bytes(self.grown)}"
        wrong = sorted(self.wrong.items(), key=lambda item: -len(item[1]))
        return "\n".join([head, *(f"{len(cases)} times {end} First: {cases[0]}" for end, cases in wrong)])

    def note(self, end: str, case: str) -> None:
        """A case that did not end as it should."""
        self.wrong.setdefault(end, []).append(case)


def fuzz(cases: int, seed_: int = 0, progress: Any = None) -> Report:
    """Open `cases` damaged files, drawn by hypothesis from `seed_`; equal arguments give equal cases.

    `progress` has a method `update`, called after each case.
    """
    report = Report()
    with tempfile.TemporaryDirectory() as folder, _quietly():
        targets = make_targets(Path(folder))
        kinds = sorted({target.kind for target in targets})
        for target in targets:
            target.open()  # whole files open; and what is loaded once does not count
        for number in range(-5, 0):
            _open(targets[number], Random(number), "", Report())
        before = peak_rss() or 0

        @seed(seed_)
        @settings(max_examples=cases, deadline=None, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(st.integers(0, 2**64 - 1))
        def one(number: int) -> None:
            random = Random(number)
            kind = random.choice(kinds)
            target = random.choice([target for target in targets if target.kind == kind])
            _open(target, random, f"case {number}, {target.path.relative_to(folder)}", report)
            if progress is not None:
                progress.update()

        one()
        report.grown = (peak_rss() or 0) - before
    if report.grown > MEMORY:
        report.note("too much memory.", f"{format_bytes(report.grown)}, more than {format_bytes(MEMORY)}")
    return report


def _open(target: Target, random: Random, name: str, report: Report) -> None:
    """Damage the file, open what it belongs to, note how that ended, and put the whole file back."""
    whole = target.path.read_bytes()
    target.path.write_bytes(target.damage(random))
    start = perf_counter()
    try:
        with _limited():
            target.open()
        end = "opened"
    except LeanError as error:
        end = "refused"
        if len(str(error)) > LONGEST:
            end = "long messages"
            report.note(f"long messages, {_place(error.__traceback__)}.", f"{name}: {str(error)[:200]!r}")
    except Hang:
        end = "hangs"
        report.note(f"over {SECONDS} s, {_place(sys.exc_info()[2])}.", name)
    except Exception as error:
        end = "foreign errors"
        report.note(f"{type(error).__name__}, {_place(error.__traceback__)}.", f"{name}: {str(error)[:160]}")
    finally:
        target.path.write_bytes(whole)
    report.cases += 1
    report.ends[end] += 1
    report.kinds[target.kind] += 1
    report.slowest = max(report.slowest, (perf_counter() - start, name))


def _place(trace: Any) -> str:
    """The last lines of a traceback that are ours."""
    ours = [frame for frame in traceback.extract_tb(trace) if "leandiffusion" in frame.filename]
    return " <- ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours[:-4:-1])


@contextmanager
def _limited() -> Iterator[None]:
    """Hang after the time that a case may take. Where C code does not return, the process ends with its traces."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(12 * SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _quietly() -> Iterator[None]:
    """Damaged files may give warnings: they are not errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
