"""What records of predictions say: errors, ranked pairs, tables and the plot. All figures are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tools.predictions import (
    WHAT,
    Combination,
    Figures,
    draw,
    errors,
    headline,
    markdown,
    ranked,
    read_predictions,
)

from leandiffusion.core.errors import ConfigError

RUN = {
    "kind": "run",
    "started": "2026-01-02T03:04:05+00:00",
    "versions": {"torch": "2.9"},
    "machine": {"cpu": {"model": "Abacus"}, "threads": {"intra-op": 2}},
}


def figures(peak: float, step: float) -> Figures:
    return Figures({"encode": 1e8, "denoise": peak, "decode": 2e8}, {"encode": 1.0, "step": step, "decode": 4.0})


def combination(about: str, predicted: Figures, measured: Figures, size: int = 256) -> Combination:
    return Combination("demo", size, 1, about, predicted, measured)


PLAIN = combination("nothing switched on", figures(4e9, 1.0), figures(5e9, 1.1))
SLOW = combination("sequential_offload", figures(1e9, 1.5), figures(1e9, 2.0))
CLOSE = combination("vae_tiling", figures(3e9, 1.2), figures(3e9, 1.05))
LARGE = combination("nothing switched on", figures(6e9, 1.4), figures(6e9, 9.0), size=512)


def line(each: Combination) -> str:
    values: dict[str, Any] = {"kind": "combination", "model": each.model, "size": each.size, "batch": each.batch}
    values |= {
        "about": each.about,
        "predicted": vars(each.predicted),
        "measured": {**vars(each.measured), "steps": [1]},
    }
    return json.dumps(values)


def test_records_are_read_and_failures_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    lines = [json.dumps(RUN), line(PLAIN), json.dumps({"kind": "failure", "error": "no memory"}), line(SLOW)]
    path.write_text("\n".join(lines) + "\n")
    run, found = read_predictions(path)
    assert found == [PLAIN, SLOW]
    assert headline(run) == "Abacus, 2 threads, torch 2.9, float32, 2026-01-02"


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "combination"}', '{"kind": "combination", "predicted": 1}'])
def test_another_file_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"record\.jsonl is no record of benchmarks/plan\.py"):
        read_predictions(path)


def test_a_call_is_its_texts_twenty_steps_and_a_decode() -> None:
    assert PLAIN.measured.call == pytest.approx(1 + 22 + 4)
    assert PLAIN.measured.peak == 5e9


def test_errors_are_sorted() -> None:
    found = errors([SLOW, PLAIN], WHAT["peak memory of a call"])
    assert [(round(error, 9), each) for error, each in found] == [(-0.2, PLAIN), (0.0, SLOW)]


def test_only_pairs_that_differ_count_and_the_wrong_ones_are_told() -> None:
    """PLAIN and CLOSE differ by 4%, which nobody has to foresee. LARGE was said to be faster than SLOW and is not."""
    wrong, total = ranked([PLAIN, SLOW, CLOSE, LARGE])
    assert (wrong, total) == ([(LARGE, SLOW)], 5)
    assert ranked([PLAIN, SLOW, CLOSE, LARGE], alike=True) == ([], 2)
    backwards = combination("deep_cache", figures(1e9, 1.6), figures(1e9, 0.5))
    assert ranked([PLAIN, backwards], alike=True) == ([(PLAIN, backwards)], 1)


def test_equal_predictions_rank_nothing() -> None:
    assert ranked(
        [combination("a", figures(1, 1.0), figures(1, 1.0)), combination("b", figures(1, 1.0), figures(1, 2.0))]
    )[0]


def test_the_tables_say_it() -> None:
    text = markdown([PLAIN, SLOW, CLOSE, LARGE])
    assert "| peak memory of a call | +0.0% | 0.0% | 20.0% | 3 of 4 | -20.0% | +0.0% |" in text
    assert "Worst peak memory of a call: -20.0%, demo, 256 px, batch 1, nothing switched on." in text
    assert "Pairs of all whose calls differ by over 15%, ranked rightly: 80.0% (4 of 5)." in text
    assert "Pairs of one model, size and batch whose calls differ by over 15%, ranked rightly: 100.0% (2 of 2)." in text
    assert "| demo | 256 | 1 | sequential_offload | 954 MiB | 954 MiB | +0% | 1.5 s | 2 s | -25% |" in text


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw([PLAIN, SLOW, LARGE], tmp_path / "plot.png", "Abacus")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
