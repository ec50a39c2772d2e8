"""Techniques that calls switch on by themselves: where, and how they make way."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.device.capabilities import onednn_computes
from leandiffusion.device.host import is_host
from leandiffusion.techniques import packed_weights
from leandiffusion.weights.packed import is_packed

pytestmark = pytest.mark.skipif(not onednn_computes(torch.float32), reason="torch was built without oneDNN")

NAME = "packed_weights"


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> StableDiffusionPipeline:
    monkeypatch.setattr(packed_weights, "WORTH", 0)
    pipe = StableDiffusionPipeline.from_pretrained("demo", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any) -> np.ndarray:
    made = pipe("a red circle", height=64, width=64, num_inference_steps=2, output_type="np", generator=seed())
    return made.images


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def on(pipe: Any) -> list[str]:
    return [applied.name for applied in pipe.techniques]


def packed(pipe: Any) -> bool:
    return is_packed(pipe.unet.mid_block.resnets[0].conv1.weight)


def test_a_call_switches_it_on(pipe: Any) -> None:
    assert on(pipe) == []
    first = draw(pipe)
    assert on(pipe) == [NAME]
    assert "on by default" in str(pipe.techniques[0])
    assert packed(pipe)
    assert np.array_equal(draw(pipe), first)


def test_not_for_small_networks() -> None:
    pipe = StableDiffusionPipeline.from_pretrained("demo", device="cpu")
    draw(pipe)
    assert on(pipe) == []


def test_it_is_exact(pipe: Any) -> None:
    pipe.disable(NAME)
    plain = draw(pipe)
    assert on(pipe) == []  # switched off by hand, it stays off
    assert not packed(pipe)
    pipe.enable_packed_weights()
    assert np.abs(draw(pipe) - plain).max() <= 1e-4  # of two steps with some hundred layers each, rounded at 6e-8
    assert packed(pipe)
    pipe.disable_packed_weights()
    assert np.array_equal(draw(pipe), plain)
    assert not packed(pipe)


@pytest.mark.parametrize("name", ["sequential_offload", "model_offload", "traced_unet"])
def test_it_makes_way_and_comes_back(name: str, pipe: Any) -> None:
    plain = draw(pipe)
    pipe.enable(name)
    assert on(pipe) == [name]
    assert np.abs(draw(pipe) - plain).max() <= 1e-4
    assert on(pipe) == [name]
    assert not packed(pipe)
    pipe.disable(name)
    draw(pipe)
    assert on(pipe) == [NAME]


def test_one_that_was_asked_for_does_not(pipe: Any) -> None:
    pipe.enable(NAME)
    with pytest.raises(ConfigError, match=r"pipe.disable\('packed_weights'\)|packed_weights"):
        pipe.enable("sequential_offload")
    assert on(pipe) == [NAME]


def test_others_leave_it_on(pipe: Any) -> None:
    draw(pipe)
    pipe.enable_channels_last()
    pipe.enable_vae_slicing()
    assert on(pipe) == ["channels_last", "vae_slicing", NAME]
    draw(pipe)
    assert packed(pipe)
    pipe.disable_channels_last()
    draw(pipe)
    assert packed(pipe)


def test_casting_and_replacing_go_on_with_it(pipe: Any) -> None:
    draw(pipe)
    pipe.to(torch.float64)
    assert draw(pipe).shape == (1, 64, 64, 3)
    pipe.to(torch.float32)
    draw(pipe)
    assert on(pipe) == [NAME]
    pipe.unet = copy.deepcopy(pipe.unet)
    draw(pipe)
    assert packed(pipe)


def test_copies_and_pipelines_that_share(pipe: Any) -> None:
    plain = draw(pipe)
    twin = copy.deepcopy(pipe)
    assert on(twin) == []
    assert np.array_equal(draw(twin), plain)
    shared = StableDiffusionPipeline(**pipe.components)
    shared.set_progress_bar_config(disable=True)
    shared.enable_sequential_cpu_offload(device="cpu")
    assert np.abs(draw(shared) - plain).max() <= 1e-4
    assert np.abs(draw(pipe) - plain).max() <= 1e-4


def test_networks_elsewhere_are_left_alone(pipe: Any) -> None:
    assert is_host(pipe.device)
    pipe.to("meta")
    assert any("CPU" in reason for reason in pipe.why_not(NAME))
