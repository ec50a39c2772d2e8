"""`leandiffusion bench` as it is typed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leandiffusion.bench.record import Measurement, read_records
from leandiffusion.cli import benching
from leandiffusion.cli.app import app
from leandiffusion.core.aside import _host

MAIN = """
import signal
from leandiffusion.cli.app import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background is started without
main()
"""


def bench(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `leandiffusion bench …`."""
    done = CliRunner().invoke(app, ["bench", *words], prog_name="leandiffusion")
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small run with the packaged model in real processes, and what it printed."""
    path = tmp_path_factory.mktemp("run") / "small.jsonl"
    code, out, err = bench(
        *"published --model demo --size 64 --steps 2 --repeat 1 --rows plain,cudnn_autotune,half_precision".split(),
        *("--dtype", "bf16", "--out", str(path)),
    )  # fmt: skip
    assert code == 0, err
    return path, out


def test_a_run_writes_records_table_and_plots(run: tuple[Path, str]) -> None:
    path, out = run
    records = read_records(path)
    assert records.complete
    assert records.base == "plain"
    assert records.measured("half_precision")[0].quality["ssim"] is not None
    printed = [Path(line) for line in out.splitlines() if line.startswith(str(path.parent))]
    assert printed[0] == path
    assert path.with_suffix(".md") in printed
    assert all(file.exists() for file in printed)
    assert any(file.suffix == ".png" for file in printed)
    assert "plain fp32" in out
    assert "+ half precision" in path.with_suffix(".md").read_text()


def test_a_run_is_no_worse_than_itself(run: tuple[Path, str]) -> None:
    path, _ = run
    code, _, err = bench("compare", str(path), str(path), "--fail-over", "5%")
    assert (code, err.strip()) == (0, "Nothing is worse.")


def test_a_slower_row_fails_the_comparison(run: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = run
    records = read_records(path)
    measured = next(o for o in records.outcomes if isinstance(o, Measurement) and o.row == "half_precision")
    slower = tmp_path / "slower.jsonl"
    old, new = f'"step": {measured.seconds["step"]}', f'"step": {measured.seconds["step"] * 2}'
    assert path.read_text().count(old) == 1
    slower.write_text(path.read_text().replace(old, new))
    code, out, err = bench("compare", str(path), str(slower))
    assert code == 1
    assert "half_precision" in out.replace("half precision", "half_precision")
    assert "worse by more than 10%" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("published --rows nothing", "unknown row 'nothing'"),
        ("published --peers nothing", "unknown peer 'nothing'"),
        ("published --model shape:sd3", "unknown model 'shape:sd3'"),
        ("published --model ./nowhere", "nowhere"),
        ("published --model demo --size 100", "the nearest that is, is 96"),
        ("published --out records.txt", "ends in .jsonl"),
        ("published --out /proc/nothing/x.jsonl", "cannot be written"),
        ("published --work /proc/nothing", "--work /proc/nothing: nothing can be written there"),
        ("published --work /proc", "--work /proc: nothing can be written there"),
        ("published --device cuda:77", "cuda:77"),
        ("compare nothing.jsonl nothing.jsonl", "nothing.jsonl cannot be read"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = bench(*words.split())
    assert code == 1
    assert says in err
    assert not list(tmp_path.glob("**/*.jsonl*"))


@pytest.mark.parametrize("words", ["published --steps 0", "published --dtype int8", "nothing", "attention --peers x"])
def test_wrong_usage_is_code_2(words: str) -> None:
    assert bench(*words.split())[0] == 2


def test_without_a_terminal_lines_tell_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(benching, "say", said.append)
    monkeypatch.setattr(benching.time, "monotonic", iter([100.0, 130.0, 190.0]).__next__)
    tell = benching._lines()
    tell("looking", 0, 0)
    for done in (0, 1, 3):
        tell("a row", done, 4)
    assert said == ["looking", "[0/4] a row", "[1/4] a row, about 1 min 30 s left", "[3/4] a row, about 30 s left"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_keeps_the_finished_rows(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    command = [sys.executable, "-c", MAIN, "bench", "published", "--model", "demo", "--size", "64"]
    command += ["--steps", "1", "--repeat", "50", "--rows", "plain", "--out", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while time.monotonic() < until and not any('"measurement"' in p.read_text() for p in tmp_path.glob(".*.part")):
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "The finished rows are in" in err
    records = read_records(path)
    assert records.measured("plain")
    assert not records.complete
    assert not list(tmp_path.glob(".*.part"))


def test_rows_of_a_killed_run_get_their_name(run: tuple[Path, str], tmp_path: Path) -> None:
    dead = f"{_host()}-999999999"  # larger than process numbers are
    rows = run[0].read_text()
    (tmp_path / f".old.jsonl.{dead}-0.part").write_text(rows)
    (tmp_path / f".taken.jsonl.{dead}-1.part").write_text(rows)
    (tmp_path / f".none.jsonl.{dead}-2.part").write_text("")
    (tmp_path / "taken.jsonl").write_text("mine")
    benching.rescue(tmp_path)
    assert (tmp_path / "old.jsonl").read_text() == rows
    assert (tmp_path / "taken.jsonl").read_text() == "mine"
    assert not (tmp_path / "none.jsonl").exists()
