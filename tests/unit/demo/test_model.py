"""The packaged model: what ships, and that it draws what it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tools.demo_world.scenes import description_of, sample_scene
from tools.demo_world.verify import verify

from leandiffusion import StableDiffusionPipeline
from leandiffusion.demo import DEFAULTS, model_folder, notice


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small_and_holds_no_pickles() -> None:
    files = [path for path in model_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    assert {path.suffix for path in files} == {".json", ".txt", ".safetensors"}


def test_it_draws_what_it_is_asked_for(pipe: StableDiffusionPipeline) -> None:
    """At least 17 of 20 single shapes: with 97.5% right, as measured, fewer would come by chance once in 700 runs."""
    rng = np.random.default_rng(0)
    descriptions = [description_of(sample_scene(rng, split="all", pair_probability=0)) for _ in range(20)]
    images = pipe(
        [description.prompt for description in descriptions],
        generator=[torch.Generator().manual_seed(i) for i in range(20)],
        num_inference_steps=DEFAULTS["steps"],
        guidance_scale=DEFAULTS["guidance_scale"],
    ).images
    verdicts = [verify(np.asarray(image), description) for image, description in zip(images, descriptions, strict=True)]
    wrong = {verdict.description.prompt: verdict.reasons for verdict in verdicts if not verdict.fully_right}
    assert len(wrong) <= 3, wrong


def test_words_it_never_saw_are_drawn_with_a_notice(pipe: StableDiffusionPipeline) -> None:
    assert notice("a red circle on a blue background") is None
    with pytest.warns(UserWarning, match=r"never seen 'zebra'.*knows"):
        images = pipe("a zebra on a blue background", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 128, 128, 3)
