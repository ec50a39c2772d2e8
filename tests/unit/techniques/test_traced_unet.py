"""The traced UNet: its graph, its file, and what happens when either does not fit."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.techniques.traced_unet import Traced


@pytest.fixture
def pipe() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, size: int = 64) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return pipe(
        "a red circle", generator=generator, num_inference_steps=2, output_type="np", height=size, width=size
    ).images


def test_the_file_holds_the_graph_and_no_weights(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, file = draw(pipe), tmp_path / "unet.pt"
    pipe.enable_traced_unet(file)
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)
    assert file.stat().st_size < sum(p.nbytes for p in pipe.unet.parameters()) / 10
    assert os.listdir(tmp_path) == ["unet.pt"]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was traced again")

    fresh = StableDiffusionPipeline.from_pretrained("demo")
    fresh.set_progress_bar_config(disable=True)
    fresh.enable_traced_unet(file)
    monkeypatch.setattr(torch.jit, "trace", refuse)
    np.testing.assert_allclose(draw(fresh), expected, atol=1e-4)
    shared = {p.data_ptr() for p in fresh.unet._graph.parameters()}
    assert shared <= {p.data_ptr() for p in fresh.unet.unet.parameters()}  # no second copy


def test_another_size_runs_untraced_and_says_so_once(pipe: Any) -> None:
    small, large = draw(pipe), draw(pipe, 72)
    pipe.enable_traced_unet()
    np.testing.assert_allclose(draw(pipe), small, atol=1e-4)
    with pytest.warns(UserWarning, match=r"traced for sample \(2, 4, 8, 8\) .* called with sample \(2, 4, 9, 9\)"):
        np.testing.assert_allclose(draw(pipe, 72), large, atol=1e-4)
    draw(pipe, 72)
    draw(pipe)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(b"not a trace"), "is not a traced UNet"),
        (lambda file: file.write_bytes(file.read_bytes()[:5000]), "is not a traced UNet"),
        (lambda file: file.write_bytes(b""), "is not a traced UNet"),
    ],
)
def test_a_broken_file_is_replaced(pipe: Any, tmp_path: Path, spoil: Any, message: str) -> None:
    expected, file = draw(pipe), tmp_path / "unet.pt"
    pipe.enable_traced_unet(file)
    draw(pipe)
    size = file.stat().st_size
    spoil(file)
    pipe.enable_traced_unet(file)
    with pytest.warns(UserWarning, match=message):
        np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)
    assert abs(file.stat().st_size - size) < 0.1 * size  # torch numbers the types of modules on through the process


def test_a_file_for_another_size_is_replaced(pipe: Any, tmp_path: Path) -> None:
    file = tmp_path / "unet.pt"
    pipe.enable_traced_unet(file)
    draw(pipe)
    pipe.enable_traced_unet(file)
    with pytest.warns(UserWarning, match="was made for another network, shape, dtype or torch"):
        draw(pipe, 72)


def test_a_folder_that_is_not_there_costs_the_file_alone(pipe: Any, tmp_path: Path) -> None:
    expected = draw(pipe)
    pipe.enable_traced_unet(tmp_path / "missing" / "unet.pt")
    with pytest.warns(UserWarning, match=r"could not be written to .*missing.* Going on without"):
        np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_the_file_alone(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own writer ends the whole process there, so it must not meet the disk."""
    expected, write = draw(pipe), Path.write_bytes

    def full(self: Path, data: Any) -> int:
        write(self, bytes(data[:100]))
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    pipe.enable_traced_unet(tmp_path / "unet.pt")
    with pytest.warns(UserWarning, match=r"could not be written to .* \(No space left on device\)\. Going on without"):
        np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_weights_changed_later_are_heeded(pipe: Any) -> None:
    pipe.enable_traced_unet()
    before = draw(pipe)
    with torch.no_grad():
        pipe.unet.unet.conv_out.bias += 0.5
    assert not np.array_equal(draw(pipe), before)


def test_threads_trace_once(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.jit.trace keeps its state in a global, and while the graph is written its weights are empty."""
    expected, trace, traced = draw(pipe), torch.jit.trace, 0
    results: list[np.ndarray] = []

    def slowly(*args: Any, **kwargs: Any) -> Any:
        nonlocal traced
        traced += 1
        time.sleep(0.2)
        return trace(*args, **kwargs)

    pipe.enable_traced_unet(tmp_path / "unet.pt")
    monkeypatch.setattr(torch.jit, "trace", slowly)
    threads = [threading.Thread(target=lambda: results.append(draw(pipe))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traced == 1
    assert len(results) == 3
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("path", [5, b"unet.pt", True])
def test_a_path_that_is_none(pipe: Any, path: Any) -> None:
    with pytest.raises(ConfigError, match="name a file to keep the graph in"):
        pipe.enable_traced_unet(path)


def test_it_looks_like_the_unet(pipe: Any, tmp_path: Path) -> None:
    unet = pipe.unet
    pipe.enable_traced_unet()
    assert isinstance(pipe.unet, Traced)
    assert (pipe.unet.config, pipe.unet.in_channels, pipe.unet.dtype) == (unet.config, 4, torch.float32)
    assert pipe.dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = pipe.unet(
            torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, unet.config.cross_attention_dim), return_dict=False
        )
    assert out[0].shape == (1, 4, 8, 8)
    pipe.unet.save_pretrained(tmp_path / "unet")
    assert (tmp_path / "unet" / "config.json").exists()
    pipe.disable("traced_unet")
    assert pipe.unet is unet


def test_a_graph_that_was_made_once_is_used_again(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.jit holds on to what it traced, some 45 MB each time with this network."""
    expected = draw(pipe)
    pipe.enable_traced_unet()
    draw(pipe)
    pipe.disable("traced_unet")
    monkeypatch.setattr(torch.jit, "trace", None)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.5)
    changed = draw(pipe)
    assert np.abs(changed - expected).max() > 1e-2
    pipe.enable_traced_unet()
    np.testing.assert_allclose(draw(pipe), changed, atol=1e-4)  # as in the other tests: sums in another order
    pipe.unet.unet.conv_out.weight.data = pipe.unet.unet.conv_out.weight.data * 2  # while it is on
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)


def test_what_torch_keeps_of_a_trace_holds_no_weights(pipe: Any) -> None:
    pipe.enable_traced_unet()
    draw(pipe)
    weight = ref(pipe.unet.unet.conv_in.weight)
    graph = pipe.unet._graph
    pipe.disable("traced_unet")
    assert sum(p.untyped_storage().nbytes() for p in graph.parameters()) < 10_000
    pipe.unet = None
    gc.collect()
    assert weight() is None
