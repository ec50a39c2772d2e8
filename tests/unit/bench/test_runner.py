"""Rounds with processes that answer at once: order, absent and failing rows, interruption, quality."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leandiffusion.bench.record import Absent, Records, Writer, read_records
from leandiffusion.bench.run import plan as planning
from leandiffusion.bench.run import process
from leandiffusion.bench.run.declared import declared_rows
from leandiffusion.bench.run.plan import BenchOptions, choose_rows, plan
from leandiffusion.bench.run.rounds import execute
from leandiffusion.bench.suites import suites
from leandiffusion.bench.workload import Job, Row, Workload
from leandiffusion.core.errors import BackendUnavailable, ConfigError

LOAD = Workload("demo", 128, 3, 1, "bfloat16", "cpu", 2)


class Machine:
    """Stands in for `process.run_task`. `troubles`: by row and how often it was drawn before, an answer or an error."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.troubles: dict[tuple[str, int], Any] = {}
        self.timelines: list[bool] = []

    def __call__(self, task: str, **arguments: Any) -> dict[str, Any]:
        if task == "survey":
            device, half = arguments["device"] or "cpu", arguments["half"] or "bfloat16"
            declared = {suite: [row.to_json() for row in rows] for suite, rows in declared_rows().items()}
            environment = {"cpu": {"model": "any"}}
            return {"result": {"device": device, "half": half, "environment": environment, "declared": declared}}
        if task in ("model", "flops"):
            return {"result": {"checkpoint": "somewhere", "size": 512} if task == "model" else {"step": 1e9}}
        if task == "ceiling":
            self.asked.append("ceiling")
            return {"result": {"float32": {"matmul": 1e11, "conv": 2e11}}}
        job = Job.from_json(json.loads(json.dumps(arguments["job"])))
        if task == "prepare":
            self.asked.append(f"prepare {job.row.name}")
            return {"result": {}}
        return self._draw(job, arguments["timeline"])

    def _draw(self, job: Job, timeline: bool) -> dict[str, Any]:
        name = job.row.name
        trouble = self.troubles.get((name, self.asked.count(name)))
        self.asked.append(name)
        self.timelines.append(timeline)
        if isinstance(trouble, BaseException):
            raise trouble
        if trouble is not None:
            return trouble
        if job.picture is not None:
            side = job.size
            shade = 0.5 if job.dtype == "float32" else 0.6
            np.save(job.picture, np.full((1, side, side, 3), shade, dtype=np.float32))
        return {
            "result": {
                "seconds": {"load": 1.0, "text": 0.1, "step": 2.0, "denoise": 6.0, "decode": 1.0, "prepare": 0.0},
                "steps": [2.0] * 3, "peaks": {"load": 1 << 30}, "allocated": {}, "reserved": {}, "timeline": [],
                "dtype": job.dtype, "notes": [],
            }
        }  # fmt: skip


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(process, "run_task", machine)
    return machine


def run(machine: Machine, work: Path, **options: Any) -> tuple[Records, str]:
    ready = plan(BenchOptions(**{"suite": "published", "model": "demo", "size": 64, "repeat": 2} | options), work)
    file = io.StringIO()
    return execute(ready, Writer(file, ready.run)), file.getvalue()


def test_rows_take_turns_and_each_round_measures_the_machine(machine: Machine, tmp_path: Path) -> None:
    records, _ = run(machine, tmp_path, rows=("plain", "half_precision"))
    assert machine.asked == ["ceiling", "plain", "half_precision", "ceiling", "half_precision", "plain"]
    assert machine.timelines == [True, True, False, False]
    assert records.complete
    assert records.base == "plain"


def test_pictures_are_compared_with_the_plain_float32_one(machine: Machine, tmp_path: Path) -> None:
    records, _ = run(machine, tmp_path, rows=("plain", "half_precision"))
    plain, half = records.measured("plain")[0], records.measured("half_precision")[0]
    assert plain.quality["psnr"] is None  # identical
    assert half.quality["psnr"] == pytest.approx(20.0, abs=1e-3)  # 0.1 off everywhere: 10 log10(1 / 0.01)


def test_a_suite_without_such_a_row_draws_the_reference_first(machine: Machine, tmp_path: Path) -> None:
    records, _ = run(machine, tmp_path, suite="memory", rows=("resident",))
    assert machine.asked == ["reference", *["ceiling", "resident"] * 2]
    assert records.measured("resident")[0].quality["psnr"] == pytest.approx(20.0, abs=1e-3)


def test_another_float32_row_is_no_reference(machine: Machine, tmp_path: Path) -> None:
    run(machine, tmp_path, rows=("best_fp32", "half_precision"), repeat=1)
    assert machine.asked[0] == "reference"


def test_a_reference_that_fails_is_told(machine: Machine, tmp_path: Path) -> None:
    machine.troubles["reference", 0] = {"error": "RuntimeError: not enough memory"}
    records, _ = run(machine, tmp_path, suite="memory", rows=("resident",), repeat=1)
    assert records.measured("resident")[0].quality == {}
    assert "not enough memory" in records.measured("resident")[0].notes[0]


def test_what_the_machine_cannot_run_is_listed_and_not_tried_again(machine: Machine, tmp_path: Path) -> None:
    machine.troubles["cudnn_autotune", 0] = {"absent": "no cuDNN"}
    records, _ = run(machine, tmp_path, rows=("plain", "cudnn_autotune", "half_precision"))
    assert records.trouble("cudnn_autotune") == "no cuDNN"
    assert machine.asked.count("cudnn_autotune") == 1
    assert list(records.run.rows) == ["plain", "cudnn_autotune", "half_precision"]


@pytest.mark.parametrize("when", [0, 1])
def test_a_crash_is_a_row_with_its_error_and_the_run_goes_on(machine: Machine, tmp_path: Path, when: int) -> None:
    machine.troubles["plain", when] = {"error": "RuntimeError: not enough memory"}
    records, text = run(machine, tmp_path, rows=("plain", "half_precision"))
    assert len(records.measured("plain")) == when
    assert len(records.measured("half_precision")) == 2
    assert records.trouble("plain") == "failed: RuntimeError: not enough memory"
    assert '"kind": "failure"' in text


def test_ctrl_c_keeps_the_finished_rows(machine: Machine, tmp_path: Path) -> None:
    machine.troubles["half_precision", 1] = KeyboardInterrupt()
    ready = plan(BenchOptions("published", "demo", 64, repeat=3, rows=("plain", "half_precision")), tmp_path)
    path = tmp_path / "records.jsonl"
    with path.open("w") as file, pytest.raises(KeyboardInterrupt):
        execute(ready, Writer(file, ready.run))
    records = read_records(path)
    assert not records.complete
    assert len(records.measured("plain")) == 1  # the second round runs backwards, and was cut at its first row
    assert len(records.measured("half_precision")) == 1


def test_rows_that_run_only_when_named_are_listed_with_the_reason(machine: Machine, tmp_path: Path) -> None:
    records, _ = run(machine, tmp_path, repeat=1)
    assert isinstance(next(o for o in records.outcomes if o.row == "compiled"), Absent)
    assert "--rows compiled" in (records.trouble("compiled") or "")
    records, _ = run(machine, tmp_path, repeat=1, rows=("all",))
    assert records.measured("compiled")


def test_a_picture_with_nan_is_noted(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Machine._draw

    def spoilt(self: Machine, job: Job, timeline: bool) -> dict[str, Any]:
        answer = inner(self, job, timeline)
        if job.row.name == "half_precision":
            np.save(str(job.picture), np.full((1, 64, 64, 3), np.nan, dtype=np.float32))
        return answer

    monkeypatch.setattr(Machine, "_draw", spoilt)
    records, _ = run(machine, tmp_path, rows=("plain", "half_precision"))
    assert records.measured("half_precision")[0].quality == {}
    assert "NaN" in records.measured("half_precision")[0].notes[0]


def test_unknown_rows_and_peers_are_refused_before_the_model(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'channels_last'"):
        plan(BenchOptions("published", "demo", rows=("chanels_last",)), tmp_path)
    with pytest.raises(ConfigError, match="unknown peer 'onnx'"):
        plan(BenchOptions("published", "demo", peers=("onnx",)), tmp_path)
    assert machine.asked == []


def test_a_peer_that_is_not_installed_is_named(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"needs openvino: pip install 'leandiffusion\[peers\]'"):
        plan(BenchOptions("published", "demo", peers=("openvino",)), tmp_path)


def test_quick_is_small_unless_told_otherwise(machine: Machine, tmp_path: Path) -> None:
    quick = plan(BenchOptions("published", "demo", quick=True), tmp_path).workload
    assert (quick.size, quick.steps, quick.repeat) == (256, 2, 1)
    told = plan(BenchOptions("published", "demo", quick=True, size=512, steps=5, repeat=2), tmp_path).workload
    assert (told.size, told.steps, told.repeat) == (512, 5, 2)


@pytest.mark.parametrize("suite", list(suites))
@pytest.mark.parametrize("half", ["bfloat16", "float32"])
def test_every_suite_has_rows_with_names_of_their_own(suite: str, half: str) -> None:
    load = Workload("demo", 128, 3, 1, half, "cpu", 2)
    declared = declared_rows().get(suite, [])
    names = [row.name for row in suites.get(suite).rows(load, declared)]
    assert len(set(names)) == len(names)
    chosen, left_out = choose_rows(BenchOptions(suite, "demo"), load, declared)
    assert sorted(row.name for row in chosen + left_out) == sorted(names)
    assert all(row.asked for row in left_out)


def test_jobs_travel_as_json() -> None:
    row = Row("x", "X", enable=(("attention_slicing", {"size": 2}), ("vae_tiling", {})), settings={"a": 1})
    job = Job(row, LOAD, "folder", "work", None)
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert row.describe("bfloat16") == "bfloat16, attention_slicing(size=2), vae_tiling, a=1"


def test_a_process_is_let_to_clean_up_and_then_ended(tmp_path: Path) -> None:
    """One that ends on Ctrl-C removes its files; one that does not is ended with what it started."""
    for polite in (True, False):
        code = (
            "import os, signal, subprocess, sys, time\n"
            f"signal.signal(signal.SIGINT, signal.default_int_handler if {polite} else signal.SIG_IGN)\n"
            "child = subprocess.Popen(['sleep', '60'])\n"
            "try: print(child.pid, flush=True); time.sleep(60)\n"
            f"finally: open({str(tmp_path / 'clean')!r}, 'w').close()"
        )
        started = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert started.stdout is not None
        child = int(started.stdout.readline())
        process._end(started)
        started.stdout.close()
        assert started.returncode is not None
        assert (tmp_path / "clean").exists() == polite
        (tmp_path / "clean").unlink(missing_ok=True)
        assert _gone(child)


def _gone(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":  # nobody waited for it, but it is over
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_process_that_dies_says_how() -> None:
    died = process._last_words(-9, "one\ntwo\n")
    assert died == "its process was ended by SIGKILL, perhaps out of memory: one | two"
    assert process._last_words(3, "") == "its process ended with code 3"


def test_outcomes_of_the_run_are_written_at_once(machine: Machine, tmp_path: Path) -> None:
    _, text = run(machine, tmp_path, rows=("plain",), repeat=1)
    kinds = [json.loads(line)["kind"] for line in text.splitlines()]
    assert kinds == ["run", "measurement", "end"]
