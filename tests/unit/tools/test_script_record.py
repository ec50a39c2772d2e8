"""Records of the scripts in benchmarks/, and the scripts that write them, with little to do."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.script_record import spread, write_record

from leandiffusion.core.config import read_json

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)


def test_a_record_says_what_where_and_when_without_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    file = tmp_path / "results" / "record.json"
    write_record(file, "a_script.py", {"rounds": 2}, {"seconds": [1.0, 2.0]})
    told = read_json(file)
    assert (told["script"], told["settings"], told["results"]) == ("a_script.py", {"rounds": 2}, {"seconds": [1, 2]})
    assert told["environment"]["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in file.read_text(encoding="utf-8")
    assert sys.executable not in file.read_text(encoding="utf-8")


def test_a_spread_is_the_median_and_the_ends() -> None:
    assert spread([3, 1, 2]) == "2.00 (1.00-3.00)"
    assert spread([0.123], digits=1) == "0.1 (0.1-0.1)"


def test_approximations_are_compared_with_exact_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "record.json"
    run(monkeypatch, "approximations.py", "--pictures", 3, "--batch", 2, "--steps", 4, "--out", out)
    told: dict[str, Any] = read_json(out)
    assert told["settings"] == {"steps": 4, "batch": 2, "threads": 1, "pictures": 3}
    kept = {title: each["psnr"] for title, each in told["results"].items()}
    exact = told["results"].pop("nothing")
    assert exact["psnr"] is None
    assert exact["times as fast"] == [1.0, 1.0]
    assert all(5 < each["psnr"] < 60 and 0 <= each["right"] <= 3 for each in told["results"].values())
    assert kept["guidance_interval, stop 0.7"] > kept["guidance_interval, stop 0.3"]
    assert capsys.readouterr().out.count("\n| ") == len(kept)
