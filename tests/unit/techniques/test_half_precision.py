"""Half precision: whether it is slow here is said, and going back is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leandiffusion import StableDiffusionPipeline
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.device import capabilities
from leandiffusion.device.capabilities import why_slow
from leandiffusion.techniques import half_precision as module
from leandiffusion.weights.residence import read_weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("fast", [False, True])
def test_what_is_slow_names_what_is_not(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "EMULATED", (torch.float16,) if fast else capabilities.HALF)
    assert why_slow(torch.float32, CPU) is None
    assert why_slow(torch.float16, CUDA) is None
    assert f"use dtype=torch.{'bfloat16' if fast else 'float32'}" in str(why_slow(torch.float16, CPU))
    assert (why_slow(torch.bfloat16, CPU) is None) == fast


def test_other_libraries_layers_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "EMULATED", capabilities.HALF)
    pipe: Any = StableDiffusionPipeline.from_pretrained("demo")
    half = module.HalfPrecision()
    assert half.notes(pipe._stack.subject) == []
    pipe.unet = torch.nn.Linear(1, 1)
    assert "float16 is emulated by torch" in half.notes(pipe._stack.subject)[0]


def test_back_at_what_the_checkpoint_holds() -> None:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    exact = [p.clone() for p in pipe.unet.parameters()]
    with torch.no_grad():
        pipe.unet.conv_in.bias += 1e-4  # a change made by hand is not lost either
        exact[1] += 1e-4
    pipe.enable("half_precision", dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    assert pipe.vae.dtype == torch.bfloat16
    pipe.disable("half_precision")
    assert all(torch.equal(p, e) for p, e in zip(pipe.unet.parameters(), exact, strict=True))


def test_without_a_checkpoint_there_is_no_way_back() -> None:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.unet = type(pipe.unet).from_config(pipe.unet.config)
    with pytest.raises(BackendUnavailable, match=r"unet was not opened from a checkpoint.*use \.to\(dtype\)"):
        pipe.enable("half_precision")


def test_a_failure_on_the_way_casts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe: Any = StableDiffusionPipeline.from_pretrained("demo")
    read_weights(pipe.components[name] for name in ("unet", "vae", "text_encoder"))
    exact = [p.clone() for p in pipe.unet.parameters()]
    load_from_disk, calls = module.load_from_disk, 0

    def fail(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        load_from_disk(*args)

    monkeypatch.setattr(module, "load_from_disk", fail)
    with pytest.raises(MemoryError):
        pipe.enable("half_precision", dtype=torch.bfloat16)
    assert {network.dtype for network in pipe._stack.subject.networks.values()} == {torch.float32}
    assert all(torch.equal(p, e) for p, e in zip(pipe.unet.parameters(), exact, strict=True))


def test_another_dtype_meanwhile_is_not_ignored_in_silence() -> None:
    pipe: Any = StableDiffusionPipeline.from_pretrained("demo")
    pipe.enable("half_precision", dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"stays on: pipe.disable\('half_precision'\) makes it torch.float64"):
        pipe.to(torch.float64)
    assert pipe.dtype == torch.bfloat16
    pipe.disable("half_precision")
    assert pipe.dtype == torch.float64
