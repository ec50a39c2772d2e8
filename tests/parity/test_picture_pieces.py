"""What diffusers' pipelines on pictures offer those who write the loop themselves, and its image processor's tools.

Numbers within 1e-5 of values around 1; pixels and coordinates are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import leandiffusion
from leandiffusion import ConfigError
from leandiffusion.pipelines.image_processor import VaeImageProcessor

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NAMES = {
    f"StableDiffusion{kind}{task}Pipeline": family
    for task in ("Img2Img", "Inpaint") for kind, family in (("", "sd1"), ("XL", "sdxl"))
}  # fmt: skip
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
HOW: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


@pytest.fixture(scope="module")
def pairs(tiny: Callable[[str], tuple[Any, Path]]) -> dict[str, tuple[Any, Any]]:
    made = {}
    for name, family in NAMES.items():
        plain, folder = tiny(family)
        theirs = getattr(diffusers, name)(**plain.components, **plain.parameters)
        made[name] = theirs, getattr(leandiffusion, name).from_pretrained(folder)
        for pipe in made[name]:
            pipe.scheduler.set_timesteps(10)
    return made


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


def seeded(count: int = 1) -> Any:
    made = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return made[0] if count == 1 else made


@pytest.mark.parametrize("name", NAMES)
def test_attributes_of_an_instance(pairs: dict[str, Any], name: str) -> None:
    theirs, ours = pairs[name]
    after_a_call = {"denoising_end", "denoising_start", "guidance_rescale", "guidance_scale", "clip_skip",
                    "cross_attention_kwargs", "num_timesteps", "do_classifier_free_guidance", "interrupt"}  # fmt: skip
    for attribute in dir(theirs):
        if not attribute.startswith("_") and attribute not in after_a_call:
            assert hasattr(ours, attribute), attribute


@pytest.mark.parametrize("strength", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_get_timesteps(pairs: dict[str, Any], name: str, strength: float) -> None:
    theirs, ours = pairs[name]
    if strength < 0.1:
        with pytest.raises(ConfigError, match="leaves none"):
            ours.get_timesteps(10, strength, "cpu")
        return
    (a, left), (b, steps) = (pipe.get_timesteps(10, strength, "cpu") for pipe in (theirs, ours))
    assert torch.equal(a.double(), b.double())
    assert left == steps
    if "XL" in name:
        (a, left), (b, steps) = (pipe.get_timesteps(10, strength, "cpu", denoising_start=0.7) for pipe in pairs[name])
        assert torch.equal(a.double(), b.double())
        assert left == steps


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 64, 64), (2, 4, 8, 8)], ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if "Img2Img" in name])
def test_image_to_image_latents(pairs: dict[str, Any], name: str, shape: tuple[int, ...], count: int) -> None:
    t = pairs[name][0].scheduler.timesteps[3:4].repeat(4)
    with torch.no_grad():
        a, b = (pipe.prepare_latents(random(*shape), t, 2, 2, **HOW, generator=seeded(count)) for pipe in pairs[name])
    torch.testing.assert_close(b, a, **CLOSE)
    assert len(b) == 4


@pytest.mark.parametrize(
    "given",
    [
        {"image": random(1, 3, 64, 64), "is_strength_max": False, "return_noise": True, "return_image_latents": True},
        {"image": random(2, 3, 64, 64), "return_image_latents": True},
        {"image": random(2, 4, 8, 8), "latents": random(2, 4, 8, 8), "is_strength_max": False, "return_noise": True},
        {"image": random(1, 3, 64, 64)},
    ],
    ids=["all", "noise alone", "latents", "nothing"],
)
@pytest.mark.parametrize("name", [name for name in NAMES if "Inpaint" in name])
def test_inpainting_latents(pairs: dict[str, Any], name: str, given: dict[str, Any]) -> None:
    t = pairs[name][0].scheduler.timesteps[3:4].repeat(2)
    with torch.no_grad():
        results = [
            pipe.prepare_latents(2, 4, 64, 64, **HOW, generator=seeded(), timestep=t, **given) for pipe in pairs[name]
        ]
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, **CLOSE)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 4, 8, 8)], ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if "Inpaint" in name])
def test_mask_latents(pairs: dict[str, Any], name: str, shape: tuple[int, ...], guided: bool) -> None:
    mask = (random(1, 1, 64, 64) > 0).float()
    with torch.no_grad():
        results = [
            pipe.prepare_mask_latents(mask, random(*shape), 2, 64, 64, **HOW, generator=seeded(),
                                      do_classifier_free_guidance=guided) for pipe in pairs[name]
        ]  # fmt: skip
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, **CLOSE)


PICTURE, MASK = Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255)
CHECKS: list[dict[str, Any]] = [
    {}, {"strength": 1.2}, {"strength": -1}, {"prompt": None}, {"prompt": 3}, {"callback_steps": 0},
    {"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 24, 32)},
    {"prompt_embeds": torch.zeros(1, 24, 32)}, {"callback_on_step_end_tensor_inputs": ["nothing"]},
    {"height": 65}, {"width": 12}, {"padding_mask_crop": 4, "output_type": "np"}, {"padding_mask_crop": 4},
    {"padding_mask_crop": 4, "image": random(1, 3, 64, 64)}, {"num_inference_steps": None},
]  # fmt: skip


@pytest.mark.parametrize("case", CHECKS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_check_inputs(pairs: dict[str, Any], name: str, case: dict[str, Any]) -> None:
    given: dict[str, Any] = {"prompt": "a", "strength": 0.5, "callback_steps": None}
    if "XL" in name:
        given |= {"prompt_2": None} | ({"num_inference_steps": 4} if "Img2Img" in name else {})
    if "Inpaint" in name:
        given |= {"image": PICTURE, "mask_image": MASK, "height": 64, "width": 64, "output_type": "pil"}
    optional = {"negative_prompt", "negative_prompt_embeds", "prompt_embeds", "callback_on_step_end_tensor_inputs"}
    if not case.keys() <= given.keys() | optional | ({"padding_mask_crop"} if "Inpaint" in name else set()):
        pytest.skip("it has no such argument")
    refused = []
    for pipe in pairs[name]:
        try:
            pipe.check_inputs(**given | case)
            refused.append(False)
        except ValueError:
            refused.append(True)
    assert refused[0] == refused[1]


# -- the image processor -----------------------------------------------------------------------------------------------


def processors(**settings: Any) -> tuple[Any, Any]:
    return diffusers.image_processor.VaeImageProcessor(**settings), VaeImageProcessor(**settings)


def noisy(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["default", "fill", "crop"])
@pytest.mark.parametrize("size", [(64, 64), (100, 40), (40, 100), (33, 47)], ids=str)
@pytest.mark.parametrize("target", [(64, 64), (48, 96), (96, 48)], ids=str)
def test_resizing(mode: str, size: tuple[int, int], target: tuple[int, int]) -> None:
    a, b = (np.asarray(each.resize(noisy(*size), *target, resize_mode=mode)) for each in processors())
    assert np.array_equal(a, b)


@pytest.mark.parametrize("box", [(3, 4, 9, 9), (0, 0, 100, 5), (90, 50, 100, 60), (40, 10, 44, 58), (99, 59, 100, 60)])
@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 128)], ids=str)
@pytest.mark.parametrize("pad", [0, 3, 32])
def test_crop_regions(box: tuple[int, int, int, int], size: tuple[int, int], pad: int) -> None:
    mask = Image.new("L", (100, 60))
    mask.paste(200, box)
    a, b = (each.get_crop_region(mask, *size, pad=pad) for each in processors())
    assert a == b


@pytest.mark.parametrize("box", [None, (10, 20, 50, 44)])
def test_overlays(box: tuple[int, int, int, int] | None) -> None:
    original, drawn = noisy(80, 60), noisy(64, 64) if box else noisy(80, 60).rotate(180)
    mask = noisy(80, 60, "L")
    a, b = (np.asarray(each.apply_overlay(mask, original, drawn, box)) for each in processors())
    assert np.array_equal(a, b)


def test_converting() -> None:
    theirs, ours = processors()
    picture = noisy(20, 10, "RGBA")
    for name in ("convert_to_rgb", "convert_to_grayscale"):
        assert getattr(theirs, name)(picture).tobytes() == getattr(ours, name)(picture).tobytes()
    assert theirs.blur(noisy(20, 10)).tobytes() == ours.blur(noisy(20, 10)).tobytes()
    values = torch.rand(2, 1, 4, 4)
    assert torch.equal(theirs.binarize(values.clone()), ours.binarize(values.clone()))
    with pytest.raises(ConfigError, match="exclude each other"):
        VaeImageProcessor(do_convert_rgb=True, do_convert_grayscale=True)
    with pytest.raises(ConfigError, match="resize_mode='fill' for a Tensor"):
        ours.resize(values, 8, 8, resize_mode="fill")


@pytest.mark.parametrize(
    "mask",
    [
        noisy(64, 64, "L"), noisy(64, 64), [noisy(64, 64), noisy(64, 64, "L")],
        np.random.default_rng(1).random((64, 64)),
        np.random.default_rng(1).random((64, 64, 1)), np.random.default_rng(1).random((2, 64, 64)),
        np.random.default_rng(1).random((2, 64, 64, 1)), torch.rand(64, 64), torch.rand(1, 64, 64),
        torch.rand(2, 64, 64), torch.rand(2, 1, 64, 64), [torch.rand(64, 64)], [torch.rand(1, 64, 64)],
    ],
    ids=lambda mask: f"{type(mask).__name__} {getattr(mask, 'shape', '')}",
)  # fmt: skip
@pytest.mark.parametrize("size", [{}, {"height": 32, "width": 48}], ids=str)
def test_masks(mask: Any, size: dict[str, int]) -> None:
    settings = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    a, b = (each.preprocess(mask, **size) for each in processors(**settings))
    assert torch.equal(a, b)
