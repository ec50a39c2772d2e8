"""What suites declare can be measured and shown, and what techniques declare is among it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest

from leandiffusion.bench.record import Measurement, Records
from leandiffusion.bench.report.plots import PLOTS
from leandiffusion.bench.report.sheets import main_sheet
from leandiffusion.bench.run.declared import declared_rows
from leandiffusion.bench.suites import suites
from leandiffusion.bench.workload import Row, Workload
from leandiffusion.techniques import Technique, techniques
from leandiffusion.techniques.base import Phase

WORKLOAD = Workload("demo", 128, 3, 1, "bfloat16", "cpu", 2)
MEMORY_ROWS = [
    "resident", "resident_fp32", "plain_attention", "attention_slicing", "vae_slicing", "vae_tiling", "model_offload",
    "unet_slicing", "half_resident", "sequential_offload", "sequential_slicing", "least",
]  # fmt: skip


def rows_of(suite: str) -> list[Row]:
    return suites.get(suite).rows(WORKLOAD, declared_rows().get(suite, []))


def test_rows_keep_the_names_and_the_order_that_records_have() -> None:
    assert [row.name for row in rows_of("memory")] == MEMORY_ROWS
    rows = {row.name: row for row in rows_of("memory")}
    assert rows["vae_slicing"] == Row("vae_slicing", "VAE slicing", enable=(("vae_slicing", {}),), adds="vae_slicing")
    assert rows["model_offload"] == Row("model_offload", "model offload", offload="model")


def test_every_row_that_a_technique_declares_is_in_its_suite() -> None:
    declared = {cls.name: cls.bench_row for cls in map(techniques.get, techniques) if cls.bench_row is not None}
    assert {"vae_slicing", "vae_tiling", "model_offload", "sequential_offload"} <= set(declared)
    for name, (suite, title) in declared.items():
        assert [row.title for row in rows_of(suite) if row.name == name] == [title]


def test_a_new_technique_brings_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class New(Technique):
        name: ClassVar[str] = "new_one"
        phase: ClassVar[Phase] = Phase.GRAPH
        bench_row: ClassVar[tuple[str, str]] = ("memory", "something new")

        def apply(self, subject: Any) -> Any: ...

    monkeypatch.setitem(techniques._entries, "new_one", New)
    names = [row.name for row in rows_of("memory")]
    assert [name for name in names if name != "new_one"] == MEMORY_ROWS
    assert names.index("new_one") == names.index("model_offload") + 1


@pytest.mark.parametrize("suite", list(suites))
def test_columns_and_plots_are_known_to_the_report(suite: str, published: Records, attention: Records) -> None:
    found = suites.get(suite)
    assert set(found.plots) <= set(PLOTS)
    records = attention if found.own_sizes else published
    sheet = main_sheet(replace(records, run=replace(records.run, suite=suite)))
    assert set(sheet.columns[1:]) <= {heading for group in found.columns for heading in group}
    assert set(found.legend) <= set(sheet.legend)


def test_records_of_an_unknown_suite_are_shown_with_the_usual_columns(records_of: Any, measure: Any) -> None:
    measured: Measurement = measure("plain")
    sheet = main_sheet(records_of(measured, suite="gone"))
    assert sheet.title.startswith("gone: ")
    assert {"step", "peak"} <= set(sheet.columns)
    assert "published" not in sheet.columns
