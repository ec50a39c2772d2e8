"""The packaged model: what ships, and that it draws what it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leandiffusion import StableDiffusionPipeline
from leandiffusion.demo import DEFAULTS, model_folder, notice
from leandiffusion.demo.scenes import parse_caption
from leandiffusion.demo.verify import verify

PROMPTS = [
    f"a {size} {colour} {shape} on a {background} background"
    for size, colour, shape, background in (
        ("large", "red", "star", "blue"),
        ("small", "yellow", "circle", "purple"),
        ("large", "green", "ring", "white"),
        ("small", "white", "cross", "red"),
        ("large", "blue", "square", "yellow"),
        ("small", "black", "triangle", "green"),
        ("large", "purple", "cross", "white"),
        ("small", "blue", "ring", "black"),
        ("large", "white", "triangle", "purple"),
        ("small", "green", "square", "yellow"),
    )
]


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
    """At most one of ten wrong: the model is right in 95% of single shapes or better, so two would be a defect."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    images = pipe(
        PROMPTS,
        generator=generators,
        num_inference_steps=DEFAULTS["steps"],
        guidance_scale=DEFAULTS["guidance_scale"],
    ).images
    requests = [parse_caption(prompt) for prompt in PROMPTS]
    verdicts = [verify(np.asarray(i), r) for i, r in zip(images, requests, strict=True) if r is not None]
    wrong = {prompt: v.reasons for prompt, v in zip(PROMPTS, verdicts, strict=True) if not v.fully_right}
    assert len(wrong) <= 1, wrong


def test_words_it_never_saw_are_drawn_with_a_notice(pipe: StableDiffusionPipeline) -> None:
    assert notice("a red circle on a blue background") is None
    with pytest.warns(UserWarning, match=r"never seen 'zebra'.*knows"):
        images = pipe("a zebra on a blue background", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 128, 128, 3)
