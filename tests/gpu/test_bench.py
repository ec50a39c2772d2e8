"""A suite on a CUDA device, in real processes: memory of torch's allocator, and a row that runs out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from leandiffusion.bench.record import Absent, read_records
from leandiffusion.cli.app import app

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("suite", ["published", "memory"])
def test_every_row_is_measured_or_says_why_not(suite: str, tmp_path: Path) -> None:
    path = tmp_path / "cuda.jsonl"
    words = ["bench", suite, "--model", "demo", "--size", "128", "--steps", "2", "--repeat", "1", "--device", "cuda"]
    done = CliRunner().invoke(app, [*words, "--out", str(path)], prog_name="leandiffusion")
    assert done.exit_code == 0, done.stderr
    records = read_records(path)
    absent = {outcome.row for outcome in records.outcomes if isinstance(outcome, Absent)}
    for row in records.run.rows:
        measured = records.measured(row)
        assert measured or row in absent
        for m in measured:
            assert 0 < m.allocated["denoise"] <= m.reserved["denoise"]
            assert m.peak == max(m.reserved.values())
            assert m.seconds["step"] > 0
