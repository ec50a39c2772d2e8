"""The packaged model is an ordinary checkpoint: diffusers opens it and draws the same pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leandiffusion import StableDiffusionPipeline
from leandiffusion.demo import model_folder

PROMPTS = ["a large red star on a blue background", "a Purple ring to the left of a white cross, black background."]


@pytest.mark.filterwarnings("ignore")  # the oracle's own deprecations
def test_diffusers_draws_the_same_pictures() -> None:
    """Within one level of 255: both run the same float32 weights, kernels may sum in another order."""
    diffusers = pytest.importorskip("diffusers")
    pictures = []
    for cls in (diffusers.StableDiffusionPipeline, StableDiffusionPipeline):
        pipe = cls.from_pretrained(model_folder(), torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        output = pipe(PROMPTS, generator=generators, num_inference_steps=8, output_type="np")
        pictures.append(output.images)
    assert np.abs(pictures[0] - pictures[1]).max() <= 1 / 255
