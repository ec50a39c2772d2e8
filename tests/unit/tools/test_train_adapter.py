"""A step of training: what is written loads, and differs from what was begun with."""

from __future__ import annotations

from pathlib import Path

from tools.train_adapter import train
from tools.train_controlnet import Silhouette
from tools.train_lora import Night

from leandiffusion import ControlNetModel, StableDiffusionPipeline

FEW = {"steps": 1, "batch": 2, "pool": 4, "rate": 1e-2, "seed": 0}


def test_a_controlnet(tmp_path: Path) -> None:
    train(Silhouette(), tmp_path, **FEW)
    ends = ControlNetModel.from_pretrained(tmp_path).controlnet_mid_block.weight
    assert ends.any()  # zero where nothing was trained


def test_a_lora_and_going_on_with_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    train(Night(), first, **FEW)
    train(Night(), second, **FEW, start=first)
    assert first.read_bytes() != second.read_bytes()
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.load_lora_weights(second)
    assert len(pipe.get_active_adapters()) == 1
