"""Whole pipelines against diffusers' with the same random weights and seeds, in float32.

Tolerances: final latents within 1e-4 of their largest entry (both sides add in different orders, and guidance at 7.5
over several steps magnifies that rounding), pictures within 1/255 everywhere. Each argument must also change the
picture by far more than that, so that a call that ignores it fails.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.parity.conftest import MAKERS

import leandiffusion
from leandiffusion.families import families
from leandiffusion.pipelines import open_pipeline
from leandiffusion.schedulers import PRESETS, build, schedulers

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:Should have t[ab]:UserWarning:torchsde",  # diffusers asks for noise a little beyond the path's ends
)

LATENTS, PICTURE, VISIBLE = 1e-4, 1 / 255, 1e-2
LENGTH = 24
Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def pairs(tiny: Callable[[str], tuple[Any, Path]]) -> Callable[[str], Pair]:
    """By family name: diffusers' pipeline, and ours opened from the folder that it saved."""
    opened: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in opened:
            theirs, folder = tiny(name)
            ours = open_pipeline(folder)
            ours.set_progress_bar_config(disable=True)
            opened[name] = theirs, ours
        return opened[name]

    return pair


@pytest.fixture(autouse=True)
def _inner_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' clip_skip looks for an inner `text_model`, which transformers 5 no longer has."""
    monkeypatch.setattr(transformers.CLIPTextModel, "text_model", property(lambda self: self), raising=False)


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(pipe: Any, seed: int | list[int] = 0, **arguments: Any) -> tuple[np.ndarray, torch.Tensor]:
    """Pictures (B, H, W, 3), and the latents after the last step as a callback sees them."""
    seeds = seed if isinstance(seed, list) else [seed]
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    seen: list[torch.Tensor] = []

    def look(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"])
        return {}

    words = {} if "prompt_embeds" in arguments else {"prompt": "a red cat"}
    defaults = {"num_inference_steps": 4, "output_type": "np", "callback_on_step_end": look}
    generator = generators if isinstance(seed, list) else generators[0]
    result = pipe(generator=generator, **words | defaults | arguments)
    return result.images, seen[-1]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest entry of `a`."""
    return ((a - b).abs().max() / a.abs().max()).item()


def check(pair: Pair, **arguments: Any) -> tuple[np.ndarray, torch.Tensor]:
    """Draw with both, compare, and return diffusers' pictures and latents."""
    (expected, expected_latents), (got, got_latents) = (draw(pipe, **arguments) for pipe in pair)
    assert got.shape == expected.shape
    assert difference(expected_latents, got_latents) < LATENTS
    assert np.abs(got - expected).max() < PICTURE
    assert expected.std() > 0.05, "a picture, not a flat field that anything would equal"
    return expected, expected_latents


def check_matters(pair: Pair, **arguments: Any) -> None:
    """`check`, and the arguments change what is drawn without them, whenever that has the same shape."""
    plain = draw(pair[0], **{"seed": arguments["seed"]} if isinstance(arguments.get("seed"), int) else {})[1]
    latents = check(pair, **arguments)[1]
    if latents.shape == plain.shape:
        assert difference(plain, latents) > VISIBLE


# -- schedulers ------------------------------------------------------------------------------------------------------


SAID = {
    "DPMSolverSDEScheduler": {"noise_sampler_seed": 1},  # else theirs draws another picture each time
    "EDMEulerScheduler": {"sigma_min": 0.002, "sigma_max": 80.0},  # theirs takes None from Euler's config, and fails
}


def swap_scheduler(pair: Pair, name: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Give both pipelines this scheduler, made from the config of the model's own."""
    theirs, ours = pair
    config = theirs.scheduler.config
    mine = build(name, ours.scheduler.config)
    settings = SAID.get(type(mine).__name__, {}) | settings
    mine = type(mine).from_config(mine.config, **settings)
    overrides = dict(PRESETS[name].overrides if name in PRESETS else {}) | settings
    monkeypatch.setattr(theirs, "scheduler", getattr(diffusers, type(mine).__name__).from_config(config, **overrides))
    monkeypatch.setattr(ours, "scheduler", mine)


NAMES = [*PRESETS, *(set(schedulers) - {preset.class_name for preset in PRESETS.values()})]


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler(pairs: Callable[[str], Pair], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swap_scheduler(pairs("sd1"), name, monkeypatch)
    check(pairs("sd1"), num_inference_steps=6, seed=[3, 4], num_images_per_prompt=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_schedulers_of_other_families(
    pairs: Callable[[str], Pair], family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SD2 predicts velocity; SDXL's config is Euler's, from which the others are made."""
    swap_scheduler(pairs(family), name, monkeypatch)
    check(pairs(family), num_inference_steps=5)


SCHEDULES = {
    "eta": ("ddim", {"eta": 0.8}),
    "eta, a generator each": ("ddim", {"eta": 0.8, "seed": [1, 2], "num_images_per_prompt": 2}),
    "timesteps": ("dpm++", {"timesteps": [900, 700, 250, 30]}),
    "sigmas": ("euler", {"sigmas": [14.0, 6.0, 1.5, 0.2]}),
    "timesteps of Heun": ("heun", {"timesteps": [950, 800, 500, 100]}),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedule_arguments(pairs: Callable[[str], Pair], case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, arguments = SCHEDULES[case]
    swap_scheduler(pairs("sd1"), name, monkeypatch)
    check_matters(pairs("sd1"), **arguments)


# -- arguments -------------------------------------------------------------------------------------------------------

COMMON = {
    "list": {"prompt": ["the cat", "a red"]},
    "batch of 3, one seed": {"prompt": ["the cat", "a red", "Ünïcode!  12"], "seed": 9},
    "negative": {"negative_prompt": "the red"},
    "negative, empty": {"negative_prompt": "", "prompt": "the"},
    "list of negatives": {"prompt": ["the cat", "a red"], "negative_prompt": ["an", "the"]},
    "several per prompt": {"prompt": ["the cat", "a red"], "num_images_per_prompt": 2, "seed": [4, 5, 6, 7]},
    "latents": {"latents": noise(1, 4, 8, 8)},
    "rescale": {"guidance_rescale": 0.7, "seed": 2},
    "clip_skip": {"clip_skip": 1},
    "clip_skip and a negative": {"clip_skip": 2, "negative_prompt": "the red"},
    "guidance 1": {"guidance_scale": 1.0},
    "guidance 3": {"guidance_scale": 3.0},
    "no guidance for a batch": {"prompt": ["the cat", "a red"], "guidance_scale": 0.0, "seed": [1, 2]},
    "latents of 5x9": {"height": 40, "width": 72},
    "one step": {"num_inference_steps": 1},
}
SD = COMMON | {
    "embeddings": {"prompt_embeds": noise(2, LENGTH, 32), "negative_prompt_embeds": noise(2, LENGTH, 32, seed=6)},
    "short embeddings": {"prompt_embeds": noise(1, 9, 32)},
    "embeddings against words": {"prompt_embeds": noise(1, LENGTH, 32), "negative_prompt": "the"},
    "words against embeddings": {"negative_prompt_embeds": noise(1, LENGTH, 32)},
}
XL_EMBEDS = {"prompt_embeds": noise(2, LENGTH, 72), "pooled_prompt_embeds": noise(2, 24)}
XL = COMMON | {
    "second prompt": {"prompt_2": "the"},
    "second prompts": {"prompt": ["the cat", "a"], "prompt_2": ["red", "cat"]},
    "second negative": {"negative_prompt": "the red", "negative_prompt_2": "an", "prompt_2": "cat"},
    "sizes": {"original_size": (96, 20), "crops_coords_top_left": (5, 13), "target_size": (64, 8)},
    "negative sizes": {
        "negative_original_size": (9, 17), "negative_crops_coords_top_left": (3, 1), "negative_target_size": (8, 64),
    },
    "sizes of a batch": {"prompt": ["the cat", "a"], "original_size": (96, 20), "negative_prompt": ["an", "the"]},
    "denoising_end": {"denoising_end": 0.6, "num_inference_steps": 5},
    "embeddings": XL_EMBEDS,
    "embeddings against embeddings": XL_EMBEDS | {
        "negative_prompt_embeds": noise(2, LENGTH, 72, seed=6), "negative_pooled_prompt_embeds": noise(2, 24, seed=7),
    },
    "pooled alone": {"pooled_prompt_embeds": noise(1, 24)},
}  # fmt: skip


@pytest.mark.parametrize("case", SD)
def test_arguments(pairs: Callable[[str], Pair], case: str) -> None:
    check_matters(pairs("sd1"), **SD[case])


@pytest.mark.parametrize("case", COMMON)
def test_arguments_of_sd2(pairs: Callable[[str], Pair], case: str) -> None:
    check_matters(pairs("sd2"), **COMMON[case])


@pytest.mark.parametrize("case", XL)
@pytest.mark.parametrize("family", [n for n in families if families.get(n).pipeline == "StableDiffusionXLPipeline"])
def test_arguments_of_sdxl(pairs: Callable[[str], Pair], family: str, case: str) -> None:
    check_matters(pairs(family), **XL[case])


def test_sdxl_without_zeros_for_an_empty_prompt(pairs: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pairs("sdxl")
    zeros = draw(theirs)[1]
    theirs.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        encoded = check((theirs, type(ours)(**ours.components, force_zeros_for_empty_prompt=False)))[1]
    finally:
        theirs.register_to_config(force_zeros_for_empty_prompt=True)
    assert difference(zeros, encoded) > VISIBLE


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_long_prompt_is_cut_alike(pairs: Callable[[str], Pair], family: str) -> None:
    with pytest.warns(UserWarning, match="'cat the cat'"):
        check(pairs(family), prompt="a " * 20 + "the red cat the cat")


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_output_types(pairs: Callable[[str], Pair], family: str, kind: str) -> None:
    for form in ({}, {"return_dict": False}):
        expected, got = (
            pipe("a cat", num_inference_steps=2, output_type=kind, generator=torch.Generator().manual_seed(1), **form)
            for pipe in pairs(family)
        )
        assert len(expected) == len(got) or kind == "latent" or not form
        assert type(got[0]) is type(expected[0])
        assert np.shape(got[0][0]) == np.shape(expected[0][0])
        scale = 255 if kind == "pil" else 1
        np.testing.assert_allclose(
            np.asarray(got[0][0], dtype=float), np.asarray(expected[0][0], dtype=float), atol=scale * PICTURE
        )


def test_guidance_as_an_input(build_sd1: Callable[..., Any], tmp_path: Path) -> None:
    """A distilled UNet (time_cond_proj_dim) hears the guidance scale and is run once per step."""
    theirs = build_sd1(unet={"time_cond_proj_dim": 16})
    theirs.scheduler = diffusers.LCMScheduler.from_config(theirs.scheduler.config)
    theirs.save_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    ours = open_pipeline(tmp_path)
    ours.set_progress_bar_config(disable=True)
    weak = check((theirs, ours), guidance_scale=1.5, num_images_per_prompt=2)[1]
    strong = check((theirs, ours), guidance_scale=8, num_images_per_prompt=2)[1]
    assert difference(weak, strong) > VISIBLE


# -- components ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_diffusers_opens_what_we_save(
    pairs: Callable[[str], Pair], tiny: Callable[[str], tuple[Any, Path]], family: str, tmp_path: Path
) -> None:
    theirs, ours = pairs(family)
    ours.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is type(theirs)
    expected, got = draw(theirs), draw(again)
    assert difference(expected[1], got[1]) < LATENTS
    assert np.abs(expected[0] - got[0]).max() < PICTURE
    picture = noise(1, 3, 64, 64)
    assert torch.equal(again.vae.encode(picture).latent_dist.mean, theirs.vae.encode(picture).latent_dist.mean)
    index, original = (json.loads((folder / "model_index.json").read_text()) for folder in (tmp_path, tiny(family)[1]))
    assert {k: v for k, v in index.items() if k[0] != "_"} == {k: v for k, v in original.items() if k[0] != "_"}
    assert index["_class_name"] == original["_class_name"]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_text_encoders_and_tokenizers_of_transformers(
    pairs: Callable[[str], Pair], tiny: Callable[[str], tuple[Any, Path]], family: str
) -> None:
    theirs, folder = tiny(family)
    given = {name: part for name, part in theirs.components.items() if name.startswith(("text_enc", "tokenizer"))}
    ours = open_pipeline(folder, **given)
    ours.set_progress_bar_config(disable=True)
    assert ours.text_encoder is theirs.text_encoder
    for arguments in ({}, {"clip_skip": 1, "negative_prompt": "the"}):
        check((theirs, ours), **arguments)
    with pytest.warns(UserWarning, match="'red'"):
        check((theirs, ours), prompt="a " * 22 + "red")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_component_of_diffusers(tiny: Callable[[str], tuple[Any, Path]], family: str) -> None:
    theirs = tiny(family)[0]
    ours = getattr(leandiffusion, type(theirs).__name__)(**theirs.components)
    ours.set_progress_bar_config(disable=True)
    check((theirs, ours), seed=[1, 2], prompt=["the cat", "a"])


def test_safety_checker(build_sd1: Callable[..., Any], tmp_path: Path) -> None:
    """A concept close to the second of three pictures: that one is black on both sides, and reported."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(vision_config={**vision, "image_size": 32, "patch_size": 8}, projection_dim=16)
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(config).eval()
    extractor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    theirs = build_sd1(safety_checker=checker, feature_extractor=extractor)
    theirs.set_progress_bar_config(disable=True)
    arguments = {"prompt": ["the cat", "a red", "an"], "seed": [1, 2, 3]}
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(checker, f"{name}_weights").data.fill_(2)  # no cosine reaches that
    plain = draw(theirs, **arguments)[0]

    pictures = list((plain * 255).round().astype(np.uint8))
    embeds = checker.visual_projection(checker.vision_model(extractor(pictures, return_tensors="pt").pixel_values)[1])
    cosines = torch.nn.functional.normalize(embeds) @ torch.nn.functional.normalize(embeds).T
    checker.concept_embeds.data[4] = embeds[1]
    checker.concept_embeds_weights.data[4] = (1 + max(cosines[1, 0], cosines[1, 2])) / 2
    theirs.save_pretrained(tmp_path)
    ours = open_pipeline(tmp_path)
    ours.set_progress_bar_config(disable=True)

    with pytest.warns(UserWarning, match="withheld 1 of 3"):
        got = check((theirs, ours), **arguments)[0]
    assert [picture.any() for picture in got] == [True, False, True]
    np.testing.assert_allclose(got[::2], plain[::2], atol=1e-6)
    with pytest.warns(UserWarning, match="withheld"):
        flags = ours(prompt=["a"] * 2, latents=noise(2, 4, 8, 8), num_inference_steps=1).nsfw_content_detected
    assert flags == theirs(prompt=["a"] * 2, latents=noise(2, 4, 8, 8), num_inference_steps=1).nsfw_content_detected
    assert open_pipeline(tmp_path, safety_checker=None)("a", num_inference_steps=1).nsfw_content_detected is None


# -- callbacks and signatures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name"), [("sd1", "SDCFGCutoffCallback"), ("sdxl", "SDXLCFGCutoffCallback")])
def test_callbacks_of_diffusers(pairs: Callable[[str], Pair], family: str, name: str) -> None:
    """Guidance off after the first step, by diffusers' own callback object."""
    cutoff = getattr(diffusers.callbacks, name)(cutoff_step_ratio=None, cutoff_step_index=0)
    expected, got = (
        pipe("the cat", num_inference_steps=5, output_type="latent", latents=noise(1, 4, 8, 8),
             callback_on_step_end=cutoff).images
        for pipe in pairs(family)
    )  # fmt: skip
    assert difference(expected, got) < LATENTS
    plain = pairs(family)[1]("the cat", num_inference_steps=5, output_type="latent", latents=noise(1, 4, 8, 8)).images
    assert difference(plain, got) > VISIBLE


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("method", ["__call__", "encode_prompt", "__init__"])
def test_signatures(pairs: Callable[[str], Pair], family: str, method: str) -> None:
    """The same parameters in the same order: positional calls mean the same."""
    theirs, ours = (list(inspect.signature(getattr(type(pipe), method)).parameters) for pipe in pairs(family))
    assert ours == [name for name in theirs if name != "kwargs"]
