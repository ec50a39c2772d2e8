"""That figures come out as documented. How large they are is the machine's affair, so nothing here bounds a time."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from leandiffusion.core.errors import ConfigError
from leandiffusion.measure import ceiling
from leandiffusion.measure.ceiling import measure_ceiling


def test_every_dtype_has_both_figures_and_memory_one() -> None:
    found = measure_ceiling("cpu", ["float32", "bfloat16"], seconds=0.02)
    assert list(found) == ["float32", "bfloat16", "memory"]
    assert set(found["float32"]) == set(found["bfloat16"]) == {"matmul", "conv"}
    assert set(found["memory"]) == {"copy"}
    figures = [figure for kinds in found.values() for figure in kinds.values()]
    assert all(isinstance(figure, float) and math.isfinite(figure) and figure > 0 for figure in figures)


def test_a_dtype_that_is_not_computed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(side: int, device: torch.device, dtype: torch.dtype) -> ceiling.Kernel:
        if dtype == torch.float16:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")
        return 1.0, lambda: None

    monkeypatch.setattr(ceiling, "_matmul", product)
    assert "float16" not in measure_ceiling("cpu", ["float16"], seconds=0.01)


def test_running_out_of_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(side: int, device: torch.device, dtype: torch.dtype) -> ceiling.Kernel:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ceiling, "_matmul", product)
    with pytest.raises(torch.OutOfMemoryError):
        measure_ceiling("cpu", ["float32"], seconds=0.01)


def test_the_largest_size_that_fits_the_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's own: work of `size` takes `size` seconds, but for a first run, which takes ten more."""
    now, runs = [0.0], []

    def make(size: int, device: torch.device, dtype: torch.dtype) -> ceiling.Kernel:
        def run() -> None:
            now[0] += size + (0 if size in runs else 10)
            runs.append(size)

        return 8.0 * size, run

    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: now[0])
    cpu = torch.device("cpu")
    assert ceiling._best(make, (1, 2, 4, 800), cpu, torch.float32, 100) == 8  # of a warm run: 8 of work per second
    assert runs[:6] == [1, 1, 2, 2, 4, 4]
    assert set(runs[6:]) == {4}  # until the time is over; 800 would have taken longer
    assert 100 <= now[0] < 105


def test_settings_of_the_process_are_as_before() -> None:
    before = torch.backends.cudnn.benchmark
    measure_ceiling("cpu", [], seconds=0.001)
    assert torch.backends.cudnn.benchmark == before


def test_names_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="'float8' is none of float32, bfloat16, float16"):
        measure_ceiling("cpu", ["float32", "float8"])
    with pytest.raises(ConfigError, match="'cpu' or 'cuda'"):
        measure_ceiling("meta", ["float32"])


@pytest.mark.gpu
def test_a_gpu_has_figures_too() -> None:
    found = measure_ceiling("cuda", ["float32", "float16"], seconds=0.2)
    assert set(found) == {"float32", "float16", "memory"}
    assert found["float16"]["matmul"] > found["float32"]["matmul"]  # tensor cores, or twice the rate


def test_importing_it_loads_no_torch() -> None:
    import subprocess

    code = "import sys; from leandiffusion.measure import ceiling, quality, work; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
