"""The dtype to draw in where none was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leandiffusion.core.cache import VARIABLE
from leandiffusion.plan import usual
from leandiffusion.plan.usual import faster_dtype, measure_gain

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path / "dtype-cpu.json"


def measured(gain: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have that measured; the list grows at each measurement."""
    times: list[float] = []

    def measure() -> float:
        times.append(gain)
        return gain

    monkeypatch.setattr(usual, "measure_gain", measure)
    return times


@pytest.mark.parametrize(
    ("gain", "expected"),
    [(2.0, torch.bfloat16), (1.1, torch.float32), (0.3, torch.float32), (0.0, torch.float32)],
)
def test_the_faster_one_is_taken_and_said_once(
    gain: float, expected: torch.dtype, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, said = measured(gain, monkeypatch), []
    assert faster_dtype(CPU, said.append) == expected
    assert faster_dtype(CPU, said.append) == expected
    assert len(times) == len(said) == 1
    assert said[0].startswith(f"Drawing in {str(expected).removeprefix('torch.')}:")
    assert cache.exists()


def test_another_number_of_threads_is_measured_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = measured(2.0, monkeypatch)
    faster_dtype(CPU)
    values = json.loads(cache.read_text())
    values["taken_under"]["threads"] = "1000"
    cache.write_text(json.dumps(values))
    assert faster_dtype(CPU) == torch.bfloat16
    assert len(times) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"gain": "much", "taken_under": {}}'])
def test_a_damaged_file_does_no_harm(text: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = measured(2.0, monkeypatch)
    cache.write_text(text)
    assert faster_dtype(CPU) == torch.bfloat16
    assert faster_dtype(CPU) == torch.bfloat16
    assert len(times) == 1


def test_a_folder_that_cannot_be_written_to_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = measured(2.0, monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    assert faster_dtype(CPU) == faster_dtype(CPU) == torch.bfloat16
    assert len(times) == 2


def test_accelerators_draw_in_float16_unmeasured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = measured(2.0, monkeypatch)
    assert faster_dtype(torch.device("cuda")) == torch.float16
    assert not times
    assert not cache.exists()


def test_a_dtype_that_is_not_computed_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: Any = usual._seconds

    def only_float32(dtype: torch.dtype, *others: Any) -> float:
        if dtype != torch.float32:
            raise RuntimeError("not implemented for 'BFloat16'")
        return seconds(dtype, *others)

    monkeypatch.setattr(usual, "_seconds", only_float32)
    assert measure_gain() == 0.0


def test_what_takes_too_long_is_not_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    layers: dict[torch.dtype, int] = {}

    def five(dtype: torch.dtype) -> Any:
        for _ in range(5):
            layers[dtype] = layers.get(dtype, 0) + 1
            yield dtype

    monkeypatch.setattr(usual, "_layers", five)
    monkeypatch.setattr(usual, "_timed", lambda dtype: 1.0 if dtype == torch.float32 else 11.0)
    assert measure_gain() == 5 / 11
    assert layers == {torch.float32: 5, torch.bfloat16: 1}
