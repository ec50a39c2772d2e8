"""Fixtures of the contract tests: the packaged model, and drawing with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.contract.common import Draw, noise, quietly

from leandiffusion import StableDiffusionPipeline


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
