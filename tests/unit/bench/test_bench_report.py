"""benchmarks/README.md is what the committed records give."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tools.bench_report import RESULTS, main, page
from typer.testing import CliRunner

from leandiffusion.bench.record import Measurement, Records, Writer
from leandiffusion.cli.app import app
from leandiffusion.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = tmp_path / "results"
    results.mkdir()
    return results


def commit(records: Records, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        writer = Writer(file, records.run)
        for outcome in records.outcomes:
            writer.add(outcome)
        writer.finish()


def losses(text: str) -> list[str]:
    section = text.split("## Slower than a peer\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("- ")]


def test_the_committed_page_is_what_the_records_give() -> None:
    committed = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    assert committed == page(RESULTS), "run `make report` and look at what changed"


@pytest.mark.parametrize("make", [True, False])
def test_without_records_it_says_so(make: bool, tmp_path: Path) -> None:
    if make:
        (tmp_path / "results").mkdir()
    text = page(tmp_path / "results")
    assert "No records are committed." in text
    assert "Slower than a peer" not in text


def test_a_section_for_each_file_in_order_of_names(folder: Path, published: Records, attention: Records) -> None:
    commit(attention, folder / "b.jsonl")
    commit(published, folder / "a.jsonl")
    target = main(folder)
    text = target.read_text(encoding="utf-8")
    assert target == folder.parent / "README.md"
    assert text == page(folder)
    assert text.index("## The published table") < text.index("## Memory-efficient attention")
    assert {path.name for path in folder.glob("*.png")} == {
        "a-tradeoff.png", "a-speedup.png", "a-timeline.png", "b-attention.png",
    }  # fmt: skip
    for link in ("a-tradeoff.png", "a-speedup.png", "a-timeline.png", "b-attention.png", "a.jsonl", "b.jsonl"):
        assert f"](results/{link})" in text


def test_it_says_where_we_are_slower(folder: Path, published: Records, attention: Records) -> None:
    commit(published, folder / "a.jsonl")
    commit(attention, folder / "b.jsonl")
    slower, alone = losses(page(folder))
    assert "“+ memory-efficient attention” is **5% slower per step than OpenVINO, bf16**" in slower
    assert "Memory-efficient attention, before and after (b; cpu: AMD EPYC 9R14; 20" in alone
    assert alone.endswith("): no other program; none was asked for.")


def test_it_says_where_we_are_not(folder: Path, published: Records) -> None:
    kept = [outcome for outcome in published.outcomes if outcome.row != "openvino_half"]
    commit(replace(published, outcomes=kept), folder / "a.jsonl")
    assert losses(page(folder)) == ["- None: wherever another program was measured, our row was not behind it."]


def test_nothing_comparable_is_no_victory(
    folder: Path, records_of: Callable[..., Records], measure: Callable[..., Measurement]
) -> None:
    commit(records_of(measure("plain"), measure("openvino_half")), folder / "a.jsonl")
    commit(records_of(measure("openvino_half")), folder / "b.jsonl")
    one, other = losses(page(folder))
    assert "no row of ours has the precision of “OpenVINO, bf16”" in one
    assert "no other program; none could be compared" in other


def test_each_section_says_how_to_measure_it_again(folder: Path, published: Records, attention: Records) -> None:
    commit(published, folder / "a.jsonl")
    commit(attention, folder / "b.jsonl")
    found = [
        line.split("Again: `leandiffusion ")[1].rstrip("`") for line in page(folder).splitlines() if "Again: " in line
    ]
    assert found[0].startswith("bench published --model shape:sd15 --size 512 --steps 4 --batch 1 --repeat 3 --dtype ")
    assert "--peers diffusers,openvino --rows plain," in found[0]
    assert "--size" not in found[1]
    for line in found:  # typed like that it is understood
        done = CliRunner().invoke(app, [*line.split(), "--out", "wrong"], prog_name="leandiffusion")
        assert (done.exit_code, "ends in .jsonl" in done.stderr) == (1, True), done.stderr


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "a.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 1 is not a record"):
        main(folder)


def test_predictions_have_a_section_and_a_plot(folder: Path, published: Records) -> None:
    commit(published, folder / "a.jsonl")
    assert "## Predicted against measured" not in page(folder)
    figures = {"peaks": {"encode": 1e8, "denoise": 2e9, "decode": 1e9}, "seconds": dict.fromkeys(("encode", "step"), 1)}
    figures["seconds"]["decode"] = 2
    told = {"model": "demo", "size": 64, "batch": 1, "about": "as it is", "predicted": figures, "measured": figures}
    machine = {"cpu": {"model": "Abacus"}, "threads": {"intra-op": 1}}
    run = {"kind": "run", "started": "2026-01-02", "versions": {"torch": "2.9"}, "machine": machine}
    (folder.parent / "plan").mkdir()
    lines = [json.dumps(values) for values in (run, {"kind": "combination", **told})]
    (folder.parent / "plan" / "abacus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = main(folder).read_text(encoding="utf-8")
    section = text.split("## Predicted against measured\n")[1].split("\n## ")[0]
    assert "](plan/abacus.png)" in section
    assert "](plan/abacus.jsonl)" in section
    assert "| demo | 64 | 1 | as it is |" in section
    assert (folder.parent / "plan" / "abacus.png").exists()
