"""Wrong pictures, masks and strengths: a ConfigError that says value, rule and fix, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import leandiffusion
from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.pipelines.tasks import pipeline_for

PICTURE = Image.new("RGB", (64, 64), "red")
MASK = Image.new("L", (64, 64), 255)
Case = tuple[dict[str, Any], list[str]]


def name(case: Any) -> str:
    """Without addresses, so that tests have the same names in every process."""
    return re.sub(" at 0x[0-9A-Fa-f]+", "", str(case))[:60]


def tensor(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


ON_A_PICTURE: list[Case] = [
    ({"strength": 1.1}, ["strength=1.1", "0 to 1"]),
    ({"strength": -0.1}, ["strength=-0.1", "0 to 1"]),
    ({"strength": "much"}, ["strength='much'", "number"]),
    ({"strength": 0.2}, ["strength=0.2 of 4 steps leaves none", "0.25", "more steps"]),
    ({"strength": 0}, ["strength=0 of 4 steps leaves none"]),
    ({"image": None}, ["image is missing", "Pillow picture"]),
    ({"image": "photo.png"}, ["image", "found str", "Pillow picture"]),
    ({"image": []}, ["image", "nothing", "Pillow picture"]),
    ({"image": [PICTURE, "x"]}, ["image", "Pillow picture"]),
    ({"image": PICTURE.convert("RGBA")}, ["image", "mode RGBA", r"image\.convert\('RGB'\)"]),
    ({"image": PICTURE.convert("CMYK")}, ["image", "mode CMYK", "convert"]),
    ({"image": PICTURE.resize((64, 7))}, ["image is 64x7 pixels", "8 at least"]),
    ({"image": np.zeros((64, 64, 3), np.uint8)}, ["image holds uint8", "/ 255"]),
    ({"image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, ["image holds torch.uint8", "/ 255"]),
    ({"image": tensor(1, 3, 64, 64) + 200}, ["image holds numbers far beyond 1", "/ 255"]),
    ({"image": tensor(1, 3, 64, 64) * float("nan")}, ["image holds NaN", "finite"]),
    ({"image": tensor(1, 2, 64, 64)}, ["image has 2 channels", "red, green and blue"]),
    ({"image": [tensor(3, 64, 64), tensor(3, 72, 64)]}, ["image cannot be read", "one size"]),
    ({"image": [PICTURE, PICTURE]}, ["image has 2 entries for 1", r"prompt=\[prompt\] \* 2"]),
    ({"image": [PICTURE] * 2, "prompt": ["a", "b", "c"]}, ["image has 2 entries for 3"]),
    ({"image": tensor(2, 4, 8, 8)}, ["image has 2 entries for 1"]),
    ({"generator": [torch.Generator()] * 3}, ["3 generators for 1"]),
]
ON_A_MASK: list[Case] = [
    *ON_A_PICTURE,
    ({"mask_image": None}, ["mask_image is missing", "white"]),
    ({"mask_image": "mask.png"}, ["mask_image", "found str"]),
    ({"mask_image": MASK.resize((64, 32))}, ["mask_image is 64x32 and image 64x64", "the picture's size"]),
    ({"mask_image": tensor(1, 3, 64, 64)}, ["mask_image has 3 channels", "pass one"]),
    ({"mask_image": [MASK, MASK]}, ["mask_image has 2 entries for 1"]),
    ({"mask_image": np.ones((64, 64), np.uint8)}, ["mask_image holds uint8"]),
    ({"mask_image": np.ones((64, 64), bool)}, ["mask_image holds bool", r"mask_image \* 1\.0"]),
    ({"mask_image": tensor(1, 1, 64, 64) * float("nan")}, ["mask_image holds NaN", "finite"]),
    ({"height": 60}, ["height=60", "divisible by 8"]),
    ({"image": tensor(1, 4, 9, 8)}, [r"image must be latents \(B, 4, 8, 8\)", r"\(1, 4, 9, 8\)"]),
    ({"masked_image_latents": tensor(1, 4, 9, 8)}, ["masked_image_latents must be latents", r"\(1, 4, 9, 8\)"]),
    ({"latents": tensor(1, 4, 9, 8)}, [r"latents .*\(1, 4, 8, 8\)"]),
    ({"padding_mask_crop": -1}, ["padding_mask_crop=-1", "number from 0"]),
    ({"padding_mask_crop": 4, "image": tensor(1, 3, 64, 64)}, ["padding_mask_crop needs image as one Pillow picture"]),
    ({"padding_mask_crop": 4, "output_type": "np"}, ["output_type='np'", "output_type='pil'"]),
    ({"padding_mask_crop": 4, "mask_image": MASK.resize((32, 32))}, ["image is 64x64 pixels and mask_image 32x32"]),
    ({"padding_mask_crop": 4, "mask_image": Image.new("L", (64, 64))}, ["all black", "white"]),
    (
        {"image": [PICTURE] * 2, "mask_image": [MASK] * 3, "prompt": ["a"] * 6, "output_type": "latent"},
        ["3 masks for 2 pictures"],
    ),
    ({"callback_on_step_end_tensor_inputs": ["masks"]}, ["'masks'", "'mask'"]),
]
GOING_ON: list[Case] = [
    ({"denoising_start": 1.5}, ["denoising_start=1.5", "0 to 1"]),
    ({"denoising_start": 0}, ["denoising_start=0", "above 0"]),
    ({"denoising_start": 0.8, "denoising_end": 0.7}, ["denoising_start=0.8", "below denoising_end=0.7"]),
    ({"denoising_start": 0.9999}, ["denoising_start=0.9999 leaves none"]),
    ({"strength": 0.3, "denoising_end": 0.5}, ["strength=0.3 begins where denoising_end"]),
    ({"aesthetic_score": "nice"}, ["aesthetic_score='nice'", "number"]),
    ({"original_size": 64}, ["original_size=64", "pair"]),
]
CASES = [
    *(("sd1", "image-to-image", *case) for case in ON_A_PICTURE),
    *(("sd1", "inpainting", *case) for case in ON_A_MASK),
    *(("sdxl", "image-to-image", *case) for case in GOING_ON),
    *(("sdxl", "inpainting", *case) for case in GOING_ON),
]


class Watch:
    """Counts how often a pipeline's networks run."""

    def __init__(self, pipe: Any) -> None:
        self.runs = 0
        for network in ("unet", "vae", "text_encoder", "text_encoder_2"):
            if hasattr(pipe, network):
                getattr(pipe, network).register_forward_pre_hook(self._count)
        pipe.vae.encoder.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1


Watched = Callable[[str, str], tuple[Any, Watch]]


@pytest.fixture(scope="module")
def watched(build: dict[str, Callable[..., Any]]) -> Watched:
    """By family and task: a pipeline, and the watch on its networks."""
    made: dict[str, tuple[Any, Watch]] = {}

    def get(family: str, task: str) -> tuple[Any, Watch]:
        base = build[family]()
        name = pipeline_for(task, type(base))
        if name not in made:
            pipe = build["quiet"](getattr(leandiffusion, name).from_pipe(base))
            made[name] = pipe, Watch(pipe)
        return made[name]

    return get


def asked_of(task: str) -> dict[str, Any]:
    mask = {"mask_image": MASK, "height": 64, "width": 64} if task == "inpainting" else {}
    return {"prompt": "a red cat", "num_inference_steps": 4, "image": PICTURE, "strength": 0.8, **mask}


@pytest.mark.parametrize(("family", "task", "arguments", "patterns"), CASES, ids=name)
def test_refused(watched: Watched, family: str, task: str, arguments: dict[str, Any], patterns: list[str]) -> None:
    pipe, watch = watched(family, task)
    with pytest.raises(ConfigError) as error:
        pipe(**asked_of(task) | arguments)
    assert isinstance(error.value, ValueError)
    for pattern in patterns:
        assert re.search(pattern, str(error.value)), f"{pattern!r} is not in: {error.value}"
    assert len(str(error.value)) < 400
    assert watch.runs == 0, "a network ran before the argument was found wrong"


@pytest.mark.parametrize("task", ["image-to-image", "inpainting"])
@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_and_palette_pictures_are_drawn(watched: Watched, task: str, mode: str) -> None:
    pipe = watched("sd1", task)[0]
    generator = torch.Generator().manual_seed(0)
    images = [
        pipe(**asked_of(task) | {"image": image, "output_type": "latent"}, generator=generator.manual_seed(0)).images
        for image in (PICTURE.convert(mode), PICTURE.convert(mode).convert("RGB"))
    ]
    assert torch.equal(*images)


def test_an_inpainting_unet_says_which_pipeline_it_wants(build: dict[str, Callable[..., Any]]) -> None:
    unet = build["unet"](in_channels=9)
    pipe: Any = build["sd1"](unet=unet)
    with pytest.raises(ConfigError, match=r"inpainting model.*StableDiffusionInpaintPipeline\.from_pipe\(pipe\)"):
        pipe("a cat")
    redrawing = leandiffusion.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    with pytest.raises(ConfigError, match=r"StableDiffusionInpaintPipeline\.from_pipe"):
        redrawing("a cat", image=PICTURE)
    inpainting = build["quiet"](leandiffusion.StableDiffusionInpaintPipeline.from_pipe(pipe))
    assert inpainting("a cat", image=PICTURE, mask_image=MASK, num_inference_steps=1).images[0].size == (64, 64)
    with pytest.raises(ConfigError, match="latents, which cannot be masked"):
        inpainting("a cat", image=tensor(1, 4, 8, 8), mask_image=MASK)


def test_a_depth_model_is_told_from_an_inpainting_one(build: dict[str, Callable[..., Any]]) -> None:
    base: StableDiffusionPipeline = build["sd1"](unet=build["unet"](in_channels=5))
    for cls in (leandiffusion.StableDiffusionPipeline, leandiffusion.StableDiffusionInpaintPipeline):
        given = {"image": PICTURE, "mask_image": MASK} if "Inpaint" in cls.__name__ else {}
        with pytest.raises(ConfigError, match=r"takes 5 channels.*Open another model"):
            cls.from_pipe(base)("a cat", **given)


@pytest.mark.parametrize(("scored", "advice"), [(True, "False"), (False, "True")])
def test_a_refiner_is_told_from_a_base_model(build: dict[str, Callable[..., Any]], scored: bool, advice: str) -> None:
    numbers = 6 if scored else 5
    unet = build["unet"](
        cross_attention_dim=72, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + numbers * 4,
    )  # fmt: skip
    pipe = leandiffusion.StableDiffusionXLImg2ImgPipeline.from_pipe(
        build["sdxl"](unet=unet), requires_aesthetics_score=scored
    )
    with pytest.raises(ConfigError, match=rf"reads {numbers} numbers .*requires_aesthetics_score={advice}"):
        pipe("a cat", image=PICTURE)
