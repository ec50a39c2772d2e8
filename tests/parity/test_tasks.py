"""Image to image and inpainting against diffusers' pipelines with the same random weights and seeds, in float32.

Tolerances as in test_pipelines: final latents within 1e-4 of their largest entry, pictures within 1/255.
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
from leandiffusion.pipelines import open_pipeline
from leandiffusion.schedulers import build

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LATENTS, PICTURE, VISIBLE = 1e-4, 1 / 255, 1e-3
STEPS = 6
IMG2IMG, INPAINT = "Img2ImgPipeline", "InpaintPipeline"
PREFIX = {"sd1": "StableDiffusion", "sd2": "StableDiffusion", "sdxl": "StableDiffusionXL"}
Pair = tuple[Any, Any]
Pairs = Callable[..., Pair]


def random(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pillow(height: int = 64, width: int = 64, seed: int = 3) -> Image.Image:
    pixels = random(height // 8, width // 8, 3, seed=seed).mul(255).byte().numpy()
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def half(height: int = 64, width: int = 64) -> Image.Image:
    """A mask: the right half is to be drawn."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def pairs(tiny: Callable[[str], tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """By family, task and channels of the UNet: diffusers' pipeline, and ours from the folder that it saved."""
    made: dict[tuple[str, str, int], Pair] = {}

    def pair(family: str, task: str, channels: int = 4, scheduler: str | None = None) -> Pair:
        key = family, task, channels
        if key not in made:
            shared, folder = tiny(family)
            plain = type(shared).from_pretrained(folder)  # not the one that other tests may have changed
            components = dict(plain.components)
            name = PREFIX[family] + task
            if channels != 4:
                torch.manual_seed(4)
                config = dict(plain.unet.config) | {"in_channels": channels}
                components["unet"] = diffusers.UNet2DConditionModel.from_config(config).eval()
            theirs = getattr(diffusers, name)(**components, **plain.parameters)
            folder = tmp_path_factory.mktemp("task")
            theirs.save_pretrained(folder)
            made[key] = theirs, getattr(leandiffusion, name).from_pretrained(folder)
            for pipe in made[key]:
                pipe.set_progress_bar_config(disable=True)
        theirs, ours = made[key]
        ours.scheduler = build(scheduler or "ddim", tiny(family)[0].scheduler.config)
        theirs.scheduler = getattr(diffusers, type(ours.scheduler).__name__).from_config(ours.scheduler.config)
        return theirs, ours

    return pair


def draw(pipe: Any, **asked: Any) -> Any:
    """What a pipeline draws; `seeds` becomes a generator for each."""
    seeds = asked.pop("seeds", 7)
    generator = torch.Generator().manual_seed(seeds) if isinstance(seeds, int) else [
        torch.Generator().manual_seed(seed) for seed in seeds
    ]  # fmt: skip
    plain = {"prompt": "a red cat", "num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "latent"}
    return pipe(**plain | asked, generator=generator).images


def check(pair: Pair, **asked: Any) -> Any:
    """Both draw the same latents; returns ours."""
    expected, got = (draw(pipe, **asked) for pipe in pair)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < LATENTS * expected.abs().max()
    return got


SCHEDULERS = ["ddim", "dpm++", "euler", "euler-a", "heun", "pndm", "lcm", "unipc"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image(pairs: Pairs, scheduler: str, strength: float) -> None:
    pair = pairs("sd1", IMG2IMG, scheduler=scheduler)
    got = check(pair, image=pillow(), strength=strength)
    assert pair[0].num_timesteps == pair[1].num_timesteps
    other = draw(pair[1], image=pillow(seed=9), strength=strength)
    assert strength == 1 or (got - other).abs().max() > VISIBLE * got.abs().max(), "the picture matters"


@pytest.mark.parametrize("family", PREFIX)
def test_families(pairs: Pairs, family: str) -> None:
    check(pairs(family, IMG2IMG), image=pillow(), strength=0.7)
    check(pairs(family, INPAINT), image=pillow(), mask_image=half(), strength=0.7)


FORMS: dict[str, Any] = {
    "tensor": random(1, 3, 64, 64),
    "tensor of one": random(3, 64, 64),
    "in [-1, 1]": random(1, 3, 64, 64) * 2 - 1,
    "array": random(1, 64, 64, 3).numpy(),
    "array of one": random(64, 64, 3).numpy(),
    "another size": pillow(67, 83),
    "tensor of another size": random(1, 3, 70, 90),
    "latents": random(1, 4, 8, 8) - 0.5,
    "list": [pillow()],
    "list of tensors": [random(3, 64, 64)],
    "list of arrays": [random(64, 64, 3).numpy()],
}


@pytest.mark.parametrize("image", FORMS.values(), ids=FORMS.keys())
def test_forms_of_pictures(pairs: Pairs, image: Any) -> None:
    check(pairs("sd1", IMG2IMG), image=image, strength=0.5)


BATCHES: dict[str, dict[str, Any]] = {
    "one for two prompts": {"prompt": ["a red cat", "the hat"], "image": pillow()},
    "one each": {"prompt": ["a red cat", "the hat"], "image": [pillow(), pillow(seed=9)]},
    "one drawn twice": {"num_images_per_prompt": 2, "image": pillow()},
    "two drawn twice": {
        "prompt": ["a red cat", "the hat"], "num_images_per_prompt": 2, "image": random(2, 3, 64, 64),
    },
    "a seed each": {"prompt": ["a red cat", "the hat"], "image": pillow(), "seeds": [3, 4]},
    "a seed and a picture each": {
        "prompt": ["a red cat", "the hat"], "image": [pillow(), pillow(seed=9)], "seeds": [3, 4],
    },
    "latents": {"prompt": ["a red cat", "the hat"], "image": random(2, 4, 8, 8), "seeds": [3, 4]},
}  # fmt: skip


@pytest.mark.parametrize("asked", BATCHES.values(), ids=BATCHES.keys())
def test_several_pictures(pairs: Pairs, asked: dict[str, Any]) -> None:
    check(pairs("sd1", IMG2IMG), strength=0.5, **asked)
    if asked["image"] is not BATCHES["latents"]["image"]:
        check(pairs("sd1", INPAINT), mask_image=half(), strength=0.5, height=64, width=64, **asked)
        check(pairs("sd1", INPAINT, 9), mask_image=half(), strength=0.5, height=64, width=64, **asked)


@pytest.mark.parametrize(
    ("scheduler", "own"),
    [
        ("dpm++", {"timesteps": [900, 700, 500, 300, 100]}), ("euler", {"sigmas": [10.0, 5.0, 2.0, 1.0, 0.5]}),
        ("ddim", {"eta": 0.8}), ("ddim", {"guidance_scale": 1.0}), ("ddim", {"clip_skip": 1}),
        ("ddim", {"negative_prompt": "the hat"}),
    ],
    ids=str,
)  # fmt: skip
def test_other_arguments(pairs: Pairs, scheduler: str, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # diffusers' clip_skip looks for an inner `text_model`, which transformers 5 no longer has
    monkeypatch.setattr(transformers.CLIPTextModel, "text_model", property(lambda self: self), raising=False)
    asked = {"num_inference_steps": STEPS, "image": pillow(), "strength": 0.7} | own
    check(pairs("sd1", IMG2IMG, scheduler=scheduler), **asked)
    check(pairs("sd1", INPAINT, 9, scheduler=scheduler), mask_image=half(), **asked)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_inpainting(pairs: Pairs, scheduler: str, strength: float, channels: int) -> None:
    """Also with noise in the steps: what diffusers draws and does not use is drawn."""
    pair = pairs("sd1", INPAINT, channels, scheduler=scheduler)
    got = check(pair, image=pillow(), mask_image=half(), strength=strength)
    other = draw(pair[1], image=pillow(seed=9), mask_image=half(), strength=strength)
    assert (got - other).abs().max() > VISIBLE * got.abs().max(), "the picture matters"


MASKS: dict[str, Any] = {
    "colours": half().convert("RGB"),
    "grey": half().point(lambda value: value // 2 + 60),
    "larger": half(128, 128),
    "array": random(64, 64).numpy(),
    "array of one": random(1, 64, 64, 1).numpy(),
    "array with a channel": random(64, 64, 1).numpy(),
    "tensor": random(64, 64),
    "tensor with a channel": random(1, 64, 64),
    "batch": random(1, 1, 64, 64),
    "list": [half()],
    "list of arrays": [random(64, 64).numpy()],
    "list of tensors": [random(64, 64)],
}


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_forms_of_masks(pairs: Pairs, mask: Any, channels: int) -> None:
    check(pairs("sd1", INPAINT, channels), image=pillow(), mask_image=mask, strength=0.6)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize(
    "given",
    [
        {"image": pillow(50, 50), "mask_image": half(50, 50)},
        {"image": random(1, 3, 64, 64), "mask_image": random(1, 1, 64, 64)},
        {"image": pillow(96, 128), "mask_image": half(96, 128), "height": 48, "width": 64},
        {"image": pillow(), "mask_image": [half(), half().rotate(90)], "prompt": ["a red cat", "the hat"]},
        {
            "image": [pillow(), pillow(seed=9)],
            "mask_image": half(),
            "prompt": ["a red cat", "the hat"],
            "seeds": [1, 2],
        },
        {"image": pillow(), "mask_image": half(), "masked_image_latents": random(1, 4, 8, 8)},
        {"image": pillow(), "mask_image": half(), "latents": random(1, 4, 8, 8), "strength": 1.0},
        {"image": pillow(), "mask_image": half(), "latents": random(1, 4, 8, 8)},
    ],
    ids=["size", "tensors", "own size", "masks", "pictures", "masked latents", "noise", "noise and a strength"],
)
def test_what_inpainting_is_given(pairs: Pairs, given: dict[str, Any], channels: int) -> None:
    check(pairs("sd1", INPAINT, channels), **{"strength": 0.6, "height": 64, "width": 64} | given)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("mask", [random(1, 1, 64, 64), random(1, 1, 8, 8), half()], ids=["pixels", "latent", "Pillow"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_inpainting_latents(pairs: Pairs, family: str, mask: Any, channels: int) -> None:
    """Where the picture, and what is left of it, come as latents, and the mask in either size."""
    given = {"image": random(1, 4, 8, 8) - 0.5, "masked_image_latents": random(1, 4, 8, 8, seed=9) - 0.5}
    check(pairs(family, INPAINT, channels), mask_image=mask, strength=0.6, height=64, width=64, **given)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize(("size", "pad"), [((96, 80), 0), ((96, 80), 8), ((40, 120), 200)])
def test_only_what_is_around_the_mask(pairs: Pairs, size: tuple[int, int], pad: int, channels: int) -> None:
    mask = Image.new("L", size[::-1])
    mask.paste(255, (10, 14, 30, 33))
    asked = {"image": pillow(*size), "mask_image": mask, "padding_mask_crop": pad, "output_type": "pil"}
    expected, got = (np.asarray(draw(pipe, strength=0.8, **asked)[0], int) for pipe in pairs("sd1", INPAINT, channels))
    assert got.shape == (*size, 3)
    assert np.abs(got - expected).max() <= 1
    assert np.array_equal(got[:, 40:], np.asarray(asked["image"])[:, 40:]), "the rest is as it was"


@pytest.mark.parametrize("channels", [4, 9])
def test_callbacks_see_and_change_the_mask(pairs: Pairs, channels: int) -> None:
    names = ["latents", "mask", "masked_image_latents"]
    seen: list[dict[str, torch.Tensor]] = []

    def change(pipe: Any, i: int, t: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(dict(tensors))
        return {"mask": 1 - tensors["mask"]} if i == 2 else {}

    check(
        pairs("sd1", INPAINT, channels), image=pillow(), mask_image=half(), strength=0.9,
        callback_on_step_end=change, callback_on_step_end_tensor_inputs=names,
    )  # fmt: skip
    theirs, ours = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for a, b in zip(theirs, ours, strict=True):
        for name in names:
            torch.testing.assert_close(b[name], a[name], atol=LATENTS * a[name].abs().max().item(), rtol=0)


def test_pictures_come_out(pairs: Pairs) -> None:
    for task, given in ((IMG2IMG, {}), (INPAINT, {"mask_image": half()})):
        a, b = (draw(pipe, image=pillow(), strength=0.6, output_type="np", **given) for pipe in pairs("sd1", task))
        assert np.abs(a - b).max() <= PICTURE


# -- SDXL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "channels"), [(IMG2IMG, 4), (INPAINT, 4), (INPAINT, 9)])
@pytest.mark.parametrize(
    "own",
    [
        {"strength": 0.3},
        {"strength": 1.0},
        {"prompt_2": "the hat", "negative_prompt": "the", "negative_prompt_2": "red"},
        {"guidance_rescale": 0.7},
        {"original_size": (48, 80), "crops_coords_top_left": (3, 5), "target_size": (96, 72)},
        {"negative_original_size": (48, 80)},
        {"denoising_end": 0.8, "strength": 0.9},
        {"num_images_per_prompt": 2, "seeds": [1, 2]},
    ],
    ids=lambda own: ",".join(own),
)
def test_sdxl(pairs: Pairs, task: str, channels: int, own: dict[str, Any]) -> None:
    pair = pairs("sdxl", task, channels, scheduler="euler")
    given = {"mask_image": half(), "height": 64, "width": 64} if task == INPAINT else {}
    asked = {"image": pillow(), "strength": 0.6, **given}
    got = check(pair, **asked | own)
    if "strength" not in own and "seeds" not in own:
        plain = draw(pair[1], **asked)
        assert (got - plain).abs().max() > VISIBLE * plain.abs().max(), "the argument matters"


@pytest.mark.parametrize(("task", "channels"), [(IMG2IMG, 4), (INPAINT, 4), (INPAINT, 9)])
@pytest.mark.parametrize("scheduler", ["euler", "dpm++", "heun"])
def test_going_on_where_a_first_model_stopped(pairs: Pairs, task: str, channels: int, scheduler: str) -> None:
    latents = random(1, 4, 8, 8) * 4 - 2
    given = {"mask_image": half(), "height": 64, "width": 64} if task == INPAINT else {}
    if channels == 9:
        given["masked_image_latents"] = random(1, 4, 8, 8, seed=8)
    pair = pairs("sdxl", task, channels, scheduler=scheduler)
    asked = {"image": latents, "denoising_start": 0.6, "strength": 0.9, "num_inference_steps": 10, **given}
    got = check(pair, **asked)
    assert pair[1].denoising_start == pair[0].denoising_start == 0.6
    assert pair[1].num_timesteps == pair[0].num_timesteps
    if task == IMG2IMG:
        assert torch.equal(got, draw(pair[1], **asked | {"seeds": 99})), "no noise is added"
        check(pair, **asked | {"denoising_end": 0.9})


def test_latents_to_begin_with(pairs: Pairs) -> None:
    latents = random(1, 4, 8, 8) - 0.5
    check(pairs("sdxl", IMG2IMG, scheduler="euler"), image=pillow(), latents=latents, strength=0.6)
    for channels in (4, 9):
        pair = pairs("sdxl", INPAINT, channels, scheduler="euler")
        check(pair, image=pillow(), mask_image=half(), latents=latents, strength=0.6, height=64, width=64)


@pytest.fixture(scope="module")
def refiners(tiny: Callable[[str], tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A refiner: one text encoder, the larger one, and a UNet that is told an aesthetic score."""
    plain, _ = tiny("sdxl")
    torch.manual_seed(6)
    config = dict(plain.unet.config) | {
        "cross_attention_dim": 40, "projection_class_embeddings_input_dim": 24 + 5 * 8,
    }  # fmt: skip
    components = dict(plain.components) | {"text_encoder": None, "tokenizer": None}
    components["unet"] = diffusers.UNet2DConditionModel.from_config(config).eval()
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline(
        **components, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False, add_watermarker=False
    )
    folder = tmp_path_factory.mktemp("refiner")
    theirs.save_pretrained(folder)
    ours = open_pipeline(folder)
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    return theirs, ours


@pytest.mark.parametrize(
    "own",
    [
        {}, {"aesthetic_score": 1.5}, {"negative_aesthetic_score": 7.5}, {"original_size": (128, 256)},
        {"negative_original_size": (8, 8), "negative_crops_coords_top_left": (4, 2)}, {"denoising_start": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_refiner(refiners: Pair, own: dict[str, Any]) -> None:
    assert type(refiners[1]) is leandiffusion.StableDiffusionXLImg2ImgPipeline
    assert refiners[1].config.requires_aesthetics_score is True
    got = check(refiners, image=pillow(), strength=0.6, **own)
    if own:
        plain = draw(refiners[1], image=pillow(), strength=0.6)
        assert (got - plain).abs().max() > VISIBLE * plain.abs().max(), "the argument matters"


@pytest.mark.parametrize("name", ["target_size", "negative_target_size"])
def test_a_refiner_is_told_no_target_size(refiners: Pair, name: str) -> None:
    """As with diffusers it changes nothing, which a warning says."""
    with pytest.warns(UserWarning, match=f"{name} changes nothing here: a refiner is told an aesthetic_score"):
        got = check(refiners, image=pillow(), strength=0.6, **{name: (16, 24)})
    assert torch.equal(got, draw(refiners[1], image=pillow(), strength=0.6))


def test_base_and_refiner(refiners: Pair, pairs: Pairs, tiny: Callable[[str], tuple[Any, Path]]) -> None:
    theirs, folder = tiny("sdxl")
    bases = theirs, open_pipeline(folder)
    bases[1].set_progress_bar_config(disable=True)
    pictures = []
    for base, refiner in zip(bases, refiners, strict=True):
        latents = draw(base, denoising_end=0.6, num_inference_steps=10)
        refined = draw(refiner, image=latents, denoising_start=0.6, num_inference_steps=10, output_type="np")
        pictures.append(refined)
    assert np.abs(pictures[0] - pictures[1]).max() <= PICTURE
