"""Fixtures of the contract tests: the packaged model, and drawing with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.contract.common import ON_A_PICTURE, Draw, noise, quietly, redraw

from leandiffusion import StableDiffusionPipeline
from leandiffusion.run import encoding
from leandiffusion.run.tasks import image_to_image, inpainting, text_to_image
from leandiffusion.schedulers import randn


@pytest.fixture
def pipe() -> Iterator[Any]:
    """The packaged model, opened anew. Some techniques concern the whole process, so none may outlive a test."""
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    pipe._stack.clear()


@pytest.fixture(scope="session")
def draw() -> Draw:
    """Draw with a pipeline; the same arguments ask for the same picture."""

    def run(pipe: Any, prompt: str | list[str] = "a red circle", **arguments: Any) -> np.ndarray:
        options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "height": 64, "width": 64}
        options |= arguments
        with quietly():
            return pipe(prompt, latents=noise(prompt, options), **options).images

    return run


@pytest.fixture(scope="session")
def plain(draw: Draw) -> np.ndarray:
    """What the packaged model draws with nothing switched on."""
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    return draw(pipe)


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of the tasks drawn in float32: a generator gives other numbers for each dtype."""

    def draw(shape: tuple[int, ...], *, dtype: torch.dtype, **options: Any) -> torch.Tensor:
        return randn(shape, dtype=torch.float32, **options).to(dtype)

    for module in (encoding, image_to_image, inpainting, text_to_image):
        monkeypatch.setattr(module, "randn", draw)


@pytest.fixture(scope="session")
def redrawn() -> dict[str, np.ndarray]:
    """By task: what the packaged model makes of a picture with nothing switched on."""
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    found = {}
    for task, (auto, given) in ON_A_PICTURE.items():
        on_picture = auto.from_pipe(pipe)
        on_picture.set_progress_bar_config(disable=True)
        found[task] = redraw(on_picture, given)
    return found
