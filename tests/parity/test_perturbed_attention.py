"""Perturbed-attention guidance against diffusers' pipelines for it, with the same random weights and seeds, in float32.

Tolerance: final latents within 1e-4 of their largest entry, as for whole pipelines (`test_pipelines`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.test_pipelines import difference

from leandiffusion import AutoPipelineForImage2Image, AutoPipelineForInpainting, ConfigError
from leandiffusion.pipelines import open_pipeline

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LATENTS, VISIBLE = 1e-4, 1e-2
THEIRS = {"sd1": "StableDiffusionPAG", "sd2": "StableDiffusionPAG", "sdxl": "StableDiffusionXLPAG"}
Opened = tuple[Any, Any]


@pytest.fixture(scope="module")
def opened(tiny: Callable[[str], tuple[Any, Path]]) -> Callable[..., Opened]:
    """By family and task: diffusers' pipeline with perturbed attention at these layers, and ours without."""

    def open_both(family: str, layers: list[str], task: str = "") -> Opened:
        plain, folder = tiny(family)
        cls = getattr(diffusers, f"{THEIRS[family]}{task}Pipeline")
        parts = {name: part for name, part in plain.components.items() if part is not None}
        parts["unet"] = type(plain.unet).from_pretrained(folder / "unet")  # theirs keeps its processors in the layers
        settings = {} if family == "sdxl" else {"requires_safety_checker": False}
        missing = {} if family == "sdxl" else {"safety_checker": None, "feature_extractor": None}
        theirs = cls(**missing | parts, pag_applied_layers=layers, **settings)
        ours = open_pipeline(folder)
        for pipe in (theirs, ours):
            pipe.set_progress_bar_config(disable=True)
        return theirs, ours

    return open_both


def draw(pipe: Any, **arguments: Any) -> torch.Tensor:
    defaults = {"prompt": "a red cat", "num_inference_steps": 4, "output_type": "latent"}
    return pipe(generator=torch.Generator().manual_seed(0), **defaults | arguments).images


def check(theirs: Any, ours: Any, scale: float, layers: list[str], adaptive: float = 0.0, **arguments: Any) -> None:
    """Equal to theirs, and another picture than without."""
    plain = draw(ours, **arguments)
    ours.enable_perturbed_attention(scale, layers, adaptive)
    got = draw(ours, **arguments)
    expected = draw(theirs, pag_scale=scale, pag_adaptive_scale=adaptive, **arguments)
    assert difference(expected, got) < LATENTS
    assert difference(plain, got) > VISIBLE
    ours.disable_perturbed_attention()
    assert torch.equal(draw(ours, **arguments), plain)


@pytest.mark.parametrize(("family", "layers"), [("sd1", ["mid"]), ("sd2", ["up"]), ("sdxl", ["mid", "up_blocks.0"])])
@pytest.mark.parametrize("guidance", [1.0, 7.5], ids=["alone", "with classifier-free guidance"])
def test_parity(opened: Callable[..., Opened], family: str, layers: list[str], guidance: float) -> None:
    check(*opened(family, layers), 3.0, layers, guidance_scale=guidance)


def test_a_layer_before_the_text_is_attended_to(opened: Callable[..., Opened]) -> None:
    """Where one sample stands for both texts."""
    layers = ["down_blocks.0"]
    check(*opened("sd1", layers), 2.0, layers)


def test_several_pictures_and_an_adaptive_scale(opened: Callable[..., Opened]) -> None:
    layers = ["mid", r"up_blocks\.1"]
    arguments = {"prompt": ["a red cat", "the cat"], "num_images_per_prompt": 2, "negative_prompt": ["the", "an"]}
    check(*opened("sd1", layers), 5.0, layers, 0.007, **arguments)


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_on_a_picture(opened: Callable[..., Opened], task: str) -> None:
    theirs, ours = opened("sd1", ["mid"], task)
    auto = AutoPipelineForImage2Image if task == "Img2Img" else AutoPipelineForInpainting
    on_picture = auto.from_pipe(ours)
    on_picture.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {"image": picture, "strength": 0.8}
    if task == "Inpaint":
        given |= {"mask_image": (picture[:, :1] > 0.5).float(), "height": 64, "width": 64}
    check(theirs, on_picture, 3.0, ["mid"], **given)


def test_what_is_wrong_is_said_before_anything_is_computed(opened: Callable[..., Opened]) -> None:
    ours = opened("sd1", ["mid"])[1]
    with pytest.raises(ConfigError, match=r"'nowhere': it is in down_blocks\.0"):
        ours.enable_perturbed_attention(layers="nowhere")
    with pytest.raises(ConfigError, match="from 0 to 1000"):
        ours.enable_perturbed_attention(scale=-1)
    with pytest.raises(ConfigError, match="Give parts of layers' names"):
        ours.enable_perturbed_attention(layers="(")
    assert ours.perturbed_attention is None
