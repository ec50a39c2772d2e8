"""Tables say what the records say: every figure where it can be worked out by hand, and every row that is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from leandiffusion.bench.record import Absent, Failure, Measurement, Records
from leandiffusion.bench.report.describe import facts, flops, headline, notes, troubles
from leandiffusion.bench.report.sheets import Sheet, main_sheet, rate, share_of_limit
from leandiffusion.bench.report.tables import markdown, rich_tables

Make = Callable[..., Records]
Maker = Callable[..., Measurement]


def in_terminal(records: Records, width: int = 160) -> str:
    console = Console(file=StringIO(), width=width)
    for part in rich_tables(records):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(sheet: Sheet, row: int) -> dict[str, str]:
    return dict(zip(sheet.columns, sheet.rows[row], strict=True))


@pytest.fixture
def exact(records_of: Make, measure: Maker) -> Records:
    """Two rows in three rounds with round numbers; the machine is half as fast in the second."""
    outcomes = []
    for number, mood in enumerate((1.0, 2.0, 1.0)):
        for row, step, decode, peak in (("plain", 8.0, 4.0, 4), ("traced", 2.0, 3.0, 1)):
            seconds = {"text": mood, "step": step * mood, "decode": decode * mood, "prepare": 0.1}
            ceiling = {"float32": {"matmul": 2e11 / mood, "conv": 4e11 / mood}, "bfloat16": {"conv": 1.607e12 / mood}}
            outcomes.append(measure(row, number, seconds=seconds, peaks={"load": peak * 2**30}, ceiling=ceiling))
    return records_of(*outcomes)


def test_each_figure_of_a_row(exact: Records) -> None:
    assert cells(main_sheet(exact), 1) == {
        "row": "+ traced UNet",
        "step": "2 s (2 s–4 s)",
        "it/s": "0.5",
        "× faster": "4.00",  # in every round, whatever the machine's mood
        "text": "1 s",
        "decode": "3 s",
        "peak": "1 GiB",
        "× peak": "0.25",
        "% of limit": "50%",  # 1.607 TFLOP in 2 s, of 1.607 TFLOP/s
        "PSNR / SSIM": "38.1 dB / 0.9870",
        "50 steps": "1 min 44 s",  # 1 + 50 · 2 + 3
        "× whole": "3.89",  # 405 / 104
        "published": "×2.96 (3.21 s)",
    }


def test_the_limit_is_the_greater_of_products_and_convolutions(exact: Records) -> None:
    share = share_of_limit(exact, "plain")
    assert share is not None
    assert share.median == pytest.approx(1.607e12 / 8 / 4e11)  # a few roundings


def test_preparation_is_shown_where_it_takes_long(exact: Records, published: Records) -> None:
    assert "prepare" not in main_sheet(exact).columns
    assert cells(main_sheet(published), 3)["prepare"] == "9.4 s"


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"flops": {}}, "% of limit"),
        ({"suite": "memory"}, "50 steps"),
        ({"suite": "memory"}, "published"),
        ({"suite": "memory"}, "× whole"),
    ],
)
def test_columns_without_values_are_left_out(change: dict[str, Any], column: str, exact: Records) -> None:
    sheet = main_sheet(replace(exact, run=replace(exact.run, **change)))
    assert column in main_sheet(exact).columns
    assert column not in sheet.columns
    assert column not in sheet.legend


def test_the_memory_suite_shows_the_peak_of_each_stage(records_of: Make, measure: Maker) -> None:
    peaks = {"load": 2**30, "warm-up": 5 * 2**30, "text": 2**29, "denoise": 2 * 2**30, "decode": 3 * 2**30}
    records = records_of(measure("plain", peaks=peaks), measure("traced", peaks=peaks, reserved={"decode": 2**20}))
    assert "at decode" not in main_sheet(records).columns
    sheet = main_sheet(replace(records, run=replace(records.run, suite="memory")))
    row, on_gpu = cells(sheet, 0), cells(sheet, 1)
    found = [row[f"at {stage}"] for stage in ("load", "text", "denoise", "decode")]
    assert found == ["1 GiB", "512 MiB", "2 GiB", "3 GiB"]
    assert (on_gpu["at load"], on_gpu["at decode"]) == ("–", "1 MiB")
    assert "at decode" in in_terminal(replace(records, run=replace(records.run, suite="memory")))


def test_a_dtype_whose_ceiling_is_unknown_has_no_share(records_of: Make, measure: Maker) -> None:
    records = records_of(measure("plain"), measure("traced", dtype="float16"))
    assert cells(main_sheet(records), 1)["% of limit"] == "–"


def test_a_row_without_decoding_has_no_whole_picture(records_of: Make, measure: Maker) -> None:
    row = cells(main_sheet(records_of(measure("plain"), measure("traced", seconds={"step": 2.0}))), 1)
    assert (row["text"], row["decode"], row["50 steps"]) == ("–", "–", "–")


@pytest.mark.parametrize(
    ("quality", "text"),
    [
        ({"psnr": None, "ssim": 1.0}, "identical"),
        ({"psnr": 38.24, "ssim": 0.98711}, "38.2 dB / 0.9871"),
        ({"psnr": 90.0, "ssim": 1.0}, "90.0 dB / 1.0000"),
        ({"ssim": 0.5}, "– / 0.5000"),
        ({"ssim": 1.0}, "– / 1.0000"),
        ({"psnr": None, "ssim": 0.5}, "– / 0.5000"),
        ({}, "–"),
    ],
)
def test_quality(quality: dict[str, Any], text: str, records_of: Make, measure: Maker) -> None:
    records = records_of(measure("plain"), measure("traced", quality=quality))
    assert cells(main_sheet(records), 1)["PSNR / SSIM"] == text


def test_of_several_rounds_the_worst_quality_counts(records_of: Make, measure: Maker) -> None:
    best, worst = {"psnr": None, "ssim": 1.0}, {"psnr": 20.0, "ssim": 0.7}
    records = records_of(measure("plain", 0, quality=best), measure("plain", 1, quality=worst))
    assert cells(main_sheet(records), 0)["PSNR / SSIM"] == "20.0 dB / 0.7000"


@pytest.mark.parametrize("draw", [markdown, in_terminal])
def test_no_row_is_dropped(draw: Callable[[Records], str], published: Records) -> None:
    text = draw(published)
    for title in (str(row["title"]) for row in published.run.rows.values()):
        assert title in text
    assert "this machine has no cuDNN" in text
    assert "failed: RuntimeError: no C++ compiler was found" in text


def test_rows_that_were_measured_in_part_or_not_reached(records_of: Make, measure: Maker) -> None:
    records = records_of(measure("plain"), measure("traced"), Failure("traced", 1, "out of\nmemory"), complete=False)
    records.run.rows["best_fp32"] = {"title": "", "about": "", "peer": None}  # type: ignore[index]
    assert troubles(records) == [
        ("+ traced UNet", "measured in 1 of 3 rounds, then failed: out of memory"),
        ("best_fp32", "was not reached"),
    ]


@pytest.mark.parametrize("draw", [markdown, in_terminal])
def test_an_interrupted_run_says_so(draw: Callable[[Records], str], published: Records) -> None:
    assert "The run was interrupted" not in draw(published)
    assert "The run was interrupted" in draw(replace(published, complete=False))


@pytest.mark.parametrize("draw", [markdown, in_terminal])
def test_the_circumstances(draw: Callable[[Records], str], published: Records) -> None:
    text = draw(published)
    for words in (
        "AMD EPYC 9R14, 2 cores, 2 threads, 23.5 GiB of memory", "Lean Diffusion 0.1.0 (commit 0123456789)",
        "torch 2.13.0+cpu", "shape:sd15, 512 px, batch 1", "half precision is bfloat16", "step 1.61 TFLOP",
        "2026-01-02 03:04 UTC", "attention_backend(backend='memory_efficient')",
    ):  # fmt: skip
        assert words in text
    ceilings = dict(facts(published))["Ceilings measured"]
    assert ceilings.startswith("float32: matmul 184 GFLOP/s (170–190), conv 225 GFLOP/s (208–232); bfloat16: matmul")


def test_a_gpu_is_named(published: Records) -> None:
    gpu = "NVIDIA TITAN RTX, compute capability 7.5, 23 GiB of 24 GiB free"
    environment = {**published.run.environment, "devices": {"cuda:0": gpu}}
    run = replace(published.run, environment=environment, workload={**published.run.workload, "device": "cuda"})
    records = replace(published, run=run)
    assert headline(records) == "shape:sd15 · 512 px · batch 1 · cuda: NVIDIA TITAN RTX"
    assert dict(facts(records))["Machine"].startswith("NVIDIA TITAN RTX, AMD EPYC")
    assert "reserved on the GPU" in main_sheet(records).legend["peak"]


@pytest.mark.parametrize(
    ("model", "name"), [("/home/me/sd-v1-5/", "sd-v1-5"), ("./sd", "sd"), ("a/b", "a/b"), ("demo", "demo")]
)
def test_of_a_path_only_the_end_is_shown(model: str, name: str, records_of: Make) -> None:
    assert headline(records_of(model=model)).startswith(f"{name} ·")


def test_an_unknown_machine_is_no_error(published: Records) -> None:
    bare = replace(published, run=replace(published.run, environment={}, flops={}, commit=None, started="once"))
    assert "once" in markdown(bare)
    assert "cpu" in in_terminal(bare)


def test_notes_that_rows_share_are_there_once(records_of: Make, measure: Maker) -> None:
    told = [measure(row, number, notes=["without  cudnn"]) for row in ("plain", "traced") for number in (0, 1)]
    assert notes(records_of(*told)) == [("plain fp32; + traced UNet", "without cudnn")]
    assert "**plain fp32; + traced UNet**: without cudnn" in markdown(records_of(*told))


def test_attention_pairs(attention: Records) -> None:
    sheet = main_sheet(attention)
    assert [row[0] for row in sheet.rows] == ["256 px", "512 px", "1024 px", "2048 px"]
    assert cells(sheet, 2) == {
        "size": "1024 px", "it/s before": "0.0208", "it/s after": "0.0417", "× faster": "2.00",
        "peak before": "12.1 GiB", "peak after": "3.4 GiB", "× peak": "0.28",
    }  # fmt: skip
    assert sheet.rows[3][1:4] == ["–", "0.00625", "–"]
    assert "attention's scores alone would take 64 GiB" in markdown(attention)
    assert "1024 px" in in_terminal(attention)


def test_without_peers_there_is_no_such_table(exact: Records) -> None:
    assert "Against other programs" not in markdown(exact)
    assert "Against other programs" not in in_terminal(exact)


def test_nothing_was_measured(records_of: Make) -> None:
    records = records_of(Absent("plain", "no [room] | here"))
    assert "No row was measured." in markdown(records)
    assert "no [room] | here" in in_terminal(records)


def test_markdown_tables_are_whole(published: Records) -> None:
    """Each line of a table has as many cells as its heading, also where a title holds the separator."""
    published.run.rows["plain"]["title"] = "plain | fp32"  # type: ignore[index]
    lines = [line for line in markdown(published).splitlines() if line.startswith("|")]
    counts = [line.replace("\\|", "").count("|") for line in lines]
    assert set(counts) == {15, 7}
    assert "plain \\| fp32" in lines[2]


def test_level_and_pictures(published: Records) -> None:
    text = markdown(published, level=2, pictures=[("a plot", "results/a.png")])
    assert text.startswith("## The published table")
    assert "\n### Settings\n" in text
    assert "![a plot](results/a.png)" in text
    assert not any(line.startswith("# ") for line in text.splitlines())


def test_a_narrow_terminal_cuts_no_figure(published: Records) -> None:
    assert "2.23 (2.20–2.24)" in in_terminal(published, 100)


@pytest.mark.parametrize(("seconds", "text"), [(0.002, "500"), (0.0046, "217"), (0.15, "6.67"), (11.3, "0.0885")])
def test_rates(seconds: float, text: str) -> None:
    assert rate(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(1.607e12, "1.61 TFLOP"), (3.84e11, "384 GFLOP"), (1.2e15, "1.2 PFLOP"), (5e3, "0.005 MFLOP")]
)
def test_operations(count: float, text: str) -> None:
    assert flops(count) == text


def test_reading_records_needs_no_torch() -> None:
    code = (
        "import sys; import leandiffusion.bench.report.tables, leandiffusion.bench.report.compare;"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
