"""The packaged model's LoRA: small, and at night by its pixels, with the shape in its colour where it was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from leandiffusion import StableDiffusionPipeline
from leandiffusion.demo import DEFAULTS, loras

PROMPTS = [
    "a red circle on a blue background",
    "a large green square on a white background",
    "a yellow star on a blue background",
    "a purple ring on an orange background",
]


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any) -> np.ndarray:
    """Pixels (N, H, W, 3) in [0, 1]."""
    return pipe(
        PROMPTS, generator=[torch.Generator().manual_seed(i) for i in range(len(PROMPTS))], output_type="np",
        num_inference_steps=DEFAULTS["steps"], guidance_scale=DEFAULTS["guidance_scale"],
    ).images  # fmt: skip


def border(pictures: np.ndarray) -> np.ndarray:
    """Mean brightness (N,) along the pictures' edges, where no shape reaches."""
    edges = [pictures[:, :3], pictures[:, -3:], pictures[:, :, :3].swapaxes(1, 2), pictures[:, :, -3:].swapaxes(1, 2)]
    return np.concatenate(edges, axis=1).mean(axis=(1, 2, 3))


def test_it_is_small() -> None:
    assert {*loras()} == {"night"}
    assert loras()["night"].stat().st_size <= 300_000


def test_backgrounds_are_black_and_shapes_stay(pipe: Any) -> None:
    plain = draw(pipe)
    pipe.load_lora_weights("night")
    night = draw(pipe)
    pipe.unload_lora_weights()
    assert (border(plain) > 0.3).all()
    assert (border(night) < 0.15).all()
    for picture in night:  # something of a colour stands there
        assert (picture.max(-1) - picture.min(-1) > 0.4).mean() > 0.03
    assert np.array_equal(draw(pipe), plain)
