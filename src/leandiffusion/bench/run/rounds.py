"""Runs a plan: every row in every round by a process of its own, rows taking turns, each outcome written at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from ..record import Absent, Failure, Measurement, Records, Writer
from ..suites.base import SCORES
from ..workload import Job, Row
from . import process
from .plan import Plan, Progress, ignore

REFERENCE = Row("reference", "plain fp32", "float32", SCORES)
"""Draws the picture that others are compared with, where the first row does not."""


def execute(plan: Plan, writer: Writer, progress: Progress = ignore) -> Records:
    """Run every round, writing each outcome as it comes. KeyboardInterrupt leaves what was written."""
    records = Records(plan.run)

    def add(outcome: Any) -> None:
        records.outcomes.append(outcome)
        writer.add(outcome)

    for row in plan.left_out:
        add(Absent(row.name, f"{row.asked}: --rows {row.name}"))
    with tempfile.TemporaryDirectory(dir=plan.workdir, prefix="pictures-") as pictures:
        rounds = Rounds(plan, Path(pictures), add, progress)
        rounds.prepare()
        for number in range(plan.workload.repeat):
            rounds.run(number)
    writer.finish()
    records.complete = True
    return records


class Rounds:
    """The rounds of one run: which rows are still in it, the reference picture, and how far it has come."""

    def __init__(self, plan: Plan, pictures: Path, add: Callable[[Any], None], progress: Progress) -> None:
        self._plan, self._pictures, self._add, self._progress = plan, pictures, add, progress
        self._rows = list(plan.rows)
        first = plan.rows[0]
        plain = replace(first, name=REFERENCE.name, title=REFERENCE.title) == REFERENCE
        self._reference = first if plain else REFERENCE
        self._no_reference = "it could not be drawn"
        self._dtypes = sorted({"float32", plan.workload.half})
        self._started = False
        self._done, self._total = 0, (len(plan.rows) + 1) * plan.workload.repeat + sum(bool(r.peer) for r in plan.rows)

    def prepare(self) -> None:
        """Let peers write what they use in every round; draw the reference picture unless the first row does."""
        for row in [row for row in self._rows if row.peer]:
            self._say(f"preparing {row.title}")
            self._keep(row, 0, process.run_task("prepare", job=self._job(row).to_json()))
        if self._reference is REFERENCE and any(row.pictures for row in self._rows):
            self._progress("drawing the reference picture", self._done, self._total)
            answer = process.run_task("draw", job=self._job(REFERENCE).to_json(), timeline=False)
            self._no_reference = answer.get("error") or answer.get("absent") or ""

    def run(self, number: int) -> None:
        """Measure the machine, then every row that is still in, once."""
        workload, self._started = self._plan.workload, True
        self._say(f"round {number + 1}/{workload.repeat}: measuring the machine")
        ceiling = process.run_task("ceiling", device=workload.device, dtypes=self._dtypes).get("result", {})
        # Every other round backwards: a machine that slows down within a round does so for other rows each time.
        for row in list(self._rows if number % 2 == 0 else reversed(self._rows)):
            self._say(f"round {number + 1}/{workload.repeat}: {row.title}")
            answer = process.run_task("draw", job=self._job(row).to_json(), timeline=number == 0)
            if (result := self._keep(row, number, answer)) is not None:
                quality, notes = self._compare(row)
                result["notes"] = result["notes"] + notes
                self._add(Measurement(row=row.name, round=number, quality=quality, ceiling=ceiling, **result))

    def _keep(self, row: Row, number: int, answer: dict[str, Any]) -> dict[str, Any] | None:
        """The result, if there is one. Rows that this machine cannot run, or that failed, leave the rounds."""
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
        plan, workdir = self._plan, self._plan.workdir / "peers"
        if row.peer:
            workdir.mkdir(exist_ok=True)
        picture = str(self._picture(row)) if row.pictures else None
        return Job(row, plan.workload, plan.checkpoint, str(workdir), picture)

    def _picture(self, row: Row) -> Path:
        return self._pictures / f"{row.name}.npy"

    def _compare(self, row: Row) -> tuple[dict[str, float | None], list[str]]:
        """Quality of the row's picture against the plain float32 one."""
        if not row.pictures:
            return {}, []
        import numpy as np

        from ...measure.quality import psnr, ssim

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
        self._progress(what, self._done, self._total)
        self._done += 1
