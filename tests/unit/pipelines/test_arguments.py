"""Wrong arguments: a ConfigError that says value, rule and fix, before anything runs; and the pipeline goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from leandiffusion import ConfigError
from leandiffusion.schedulers import build as build_scheduler

LENGTH = 16
GENERATOR = torch.Generator()


def tensor(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


# arguments -> patterns that the message must contain: what was found, and what to do
COMMON: list[tuple[dict[str, Any], list[str]]] = [
    ({"height": 65}, ["height=65", "divisible by 8", "64"]),
    ({"width": 1}, ["width=1 ", "divisible by 8", "nearest.* 8"]),
    ({"height": 0}, ["height=0", "positive"]),
    ({"width": -64}, ["width=-64", "positive"]),
    ({"height": 64.0}, ["height=64.0", "whole number"]),
    ({"width": "64"}, ["width='64'", "whole number"]),
    ({"num_inference_steps": 0}, ["num_inference_steps=0", "1 or more"]),
    ({"num_inference_steps": -5}, ["num_inference_steps=-5", "1 or more"]),
    ({"num_inference_steps": 2.5}, ["num_inference_steps=2.5", "whole"]),
    ({"num_inference_steps": 1001}, ["1001", "1000"]),
    ({"num_inference_steps": None}, ["num_inference_steps=None", "whole"]),
    ({"guidance_scale": float("nan")}, ["guidance_scale=nan", "-1000 to 1000"]),
    ({"guidance_scale": "7"}, ["guidance_scale='7'", "number"]),
    ({"guidance_rescale": 1.5}, ["guidance_rescale=1.5", "0 to 1"]),
    ({"eta": -0.1}, ["eta=-0.1", "0 to 1"]),
    ({"num_images_per_prompt": 0}, ["num_images_per_prompt=0", "1 or more"]),
    ({"prompt": None}, ["nothing to draw", "prompt_embeds"]),
    ({"prompt": 3}, ["prompt", "int, 3", "list of texts"]),
    ({"prompt": []}, ["prompt", "empty list"]),
    ({"prompt": ["a", None]}, ["prompt", "NoneType", "list of texts"]),
    ({"prompt_embeds": tensor(1, LENGTH, 32)}, ["prompt and prompt_embeds", "one of them"]),
    ({"prompt": None, "prompt_embeds": tensor(LENGTH, 32)}, [r"prompt_embeds", r"\(16, 32\)", "tokens"]),
    ({"prompt": None, "prompt_embeds": [1.0]}, ["prompt_embeds", "found list"]),
    ({"negative_prompt": 5}, ["negative_prompt", "int, 5"]),
    ({"negative_prompt": ["a", "b"]}, ["negative_prompt has 2 texts for 1", "one for each"]),
    ({"prompt": ["a", "b", "c"], "negative_prompt": ["a", "b"]}, ["2 texts for 3 prompts"]),
    ({"negative_prompt": "a", "negative_prompt_embeds": tensor(1, LENGTH, 32)}, ["negative_prompt and", "one of them"]),
    ({"negative_prompt_embeds": tensor(2, LENGTH, 32)}, ["negative_prompt_embeds", r"\(1, tokens", r"\(2, 16, 32\)"]),
    ({"generator": 42}, ["generator", "int", "manual_seed"]),
    ({"generator": [GENERATOR, 1]}, ["generator", "int"]),
    ({"generator": [GENERATOR, GENERATOR]}, ["2 generators for 1 pictures", "one for each"]),
    ({"generator": [GENERATOR], "num_images_per_prompt": 2}, ["1 generators for 2"]),
    ({"generator": []}, ["0 generators for 1"]),
    ({"latents": tensor(1, 4, 9, 8)}, [r"latents .*\(1, 4, 8, 8\)", r"found \(1, 4, 9, 8\)"]),
    ({"latents": tensor(1, 4, 8, 8), "num_images_per_prompt": 2}, [r"\(2, 4, 8, 8\)"]),
    ({"latents": "noise"}, ["latents", "found str"]),
    ({"output_type": "jpeg"}, ["output_type='jpeg'", "'pil'"]),
    ({"output_type": None}, ["output_type=None", "'latent'"]),
    ({"clip_skip": 9}, ["clip_skip=9", "0 to [12]"]),
    ({"clip_skip": -1}, ["clip_skip=-1", "0 to [12]"]),
    ({"clip_skip": 1.0}, ["clip_skip=1.0"]),
    ({"timesteps": [9, 5], "sigmas": [1.0]}, ["timesteps and sigmas", "one of them"]),
    ({"sigmas": [1.0, 0.5]}, ["DDIMScheduler takes no sigmas", "another scheduler"]),
    ({"callback_on_step_end": 3}, ["callback_on_step_end=3", "function"]),
    ({"callback_on_step_end_tensor_inputs": ["latent"]}, ["tensor_inputs has 'latent'", "'latents'"]),
    ({"ip_adapter_image": object()}, ["ip_adapter_image", "no IP-Adapter is loaded"]),
    ({"ip_adapter_image_embeds": [tensor(1, 1, 4)]}, ["ip_adapter_image_embeds", "no IP-Adapter is loaded"]),
    ({"ip_adapter_image_embeds": tensor(1, 1, 4)}, ["ip_adapter_image_embeds must be a list of tensors"]),
    ({"cross_attention_kwargs": {"scale": 0.5}}, ["cross_attention_kwargs", "leave it out"]),
]
SD1 = [
    *COMMON,
    ({"prompt": None, "prompt_embeds": tensor(1, 16, 40)}, ["40 channels", "reads 32", "encode_prompt"]),
]
XL = [
    *COMMON,
    ({"prompt_2": 7}, ["prompt_2", "int, 7"]),
    ({"prompt": ["a", "b"], "prompt_2": ["a", "b", "c"]}, ["prompt_2 has 3 texts for 2"]),
    ({"negative_prompt": "a", "negative_prompt_2": ["b", "c"]}, ["negative_prompt_2 has 2 texts for 1"]),
    ({"negative_prompt_2": "a"}, ["negative_prompt_2", "pass negative_prompt too"]),
    ({"prompt": None, "prompt_embeds": tensor(1, 16, 72)}, ["pooled_prompt_embeds", "none", "encode_prompt"]),
    (
        {"prompt": None, "prompt_2": "a", "prompt_embeds": tensor(1, 16, 72), "pooled_prompt_embeds": tensor(1, 24)},
        ["prompt_2", "one of them"],
    ),
    (
        {"prompt": None, "prompt_embeds": tensor(2, 16, 72), "pooled_prompt_embeds": tensor(1, 24)},
        ["pooled_prompt_embeds", r"\(2, channels\)", r"\(1, 24\)"],
    ),
    ({"negative_prompt_embeds": tensor(1, 16, 72)}, ["negative_pooled_prompt_embeds", "none"]),
    ({"original_size": 64}, ["original_size=64", "pair"]),
    ({"original_size": 0}, ["original_size=0", "pair"]),
    ({"negative_crops_coords_top_left": 5}, ["negative_original_size=None", "pass both"]),
    (
        {"negative_original_size": (8, 8), "negative_target_size": (8, 8), "negative_crops_coords_top_left": 5},
        ["negative_crops_coords_top_left=5", "pair"],
    ),
    ({"crops_coords_top_left": (1, 2, 3)}, ["crops_coords_top_left", "pair"]),
    ({"target_size": ("a", "b")}, ["target_size", "pair"]),
    ({"negative_original_size": (8, 8)}, ["negative_target_size=None", "pass both"]),
    ({"negative_crops_coords_top_left": (8, 8)}, ["negative_original_size=None", "pass both"]),
    ({"denoising_end": 1.5}, ["denoising_end=1.5", "0 to 1"]),
    ({"denoising_end": 0.01}, ["denoising_end=0.01", "none of the 4 steps", "raise it"]),
]


def name(case: Any) -> str | None:
    return ",".join(without_addresses(f"{k}={v}")[:40] for k, v in case.items()) if isinstance(case, dict) else None


def without_addresses(text: str) -> str:
    """Equal in every process, as the names of tests that are spread over several must be."""
    return re.sub(" at 0x[0-9A-Fa-f]+", "", text)


class Watch:
    """Counts how often a pipeline's networks run."""

    def __init__(self, pipe: Any) -> None:
        self.runs = 0
        for network in ("unet", "vae", "text_encoder", "text_encoder_2"):
            if hasattr(pipe, network):
                getattr(pipe, network).register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1


Watched = Callable[[str], tuple[Any, Watch, torch.Tensor]]


@pytest.fixture(scope="module")
def watched(build: dict[str, Callable[..., Any]], draw: Callable[..., torch.Tensor]) -> Watched:
    """By family: a pipeline, the watch on its networks, and what it draws."""
    pipes = {family: build[family]() for family in ("sd1", "sdxl")}
    made = {family: (pipe, Watch(pipe), draw(pipe)) for family, pipe in pipes.items()}
    return made.__getitem__


def refuse(pipe: Any, watch: Watch, arguments: dict[str, Any], patterns: list[str]) -> None:
    before = watch.runs
    with pytest.raises(ConfigError) as error:
        pipe(**{"prompt": "a red cat", "num_inference_steps": 4} | arguments)
    assert isinstance(error.value, ValueError)
    for pattern in patterns:
        assert re.search(pattern, str(error.value)), f"{pattern!r} is not in: {error.value}"
    assert watch.runs == before, "a network ran before the argument was found wrong"


@pytest.mark.parametrize(("arguments", "patterns"), SD1, ids=name)
def test_refused(watched: Watched, arguments: dict[str, Any], patterns: list[str]) -> None:
    pipe, watch, _ = watched("sd1")
    refuse(pipe, watch, arguments, patterns)


@pytest.mark.parametrize(("arguments", "patterns"), XL, ids=name)
def test_refused_by_sdxl(watched: Watched, arguments: dict[str, Any], patterns: list[str]) -> None:
    pipe, watch, _ = watched("sdxl")
    refuse(pipe, watch, arguments, patterns)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_works_as_before_afterwards(watched: Watched, draw: Callable[..., torch.Tensor], family: str) -> None:
    """After every wrong call above (and some more here, in case this test runs alone) nothing has changed."""
    pipe, watch, picture = watched(family)
    for arguments, patterns in COMMON[:5]:
        refuse(pipe, watch, arguments, patterns)
    assert torch.equal(draw(pipe), picture)


def test_own_timesteps_need_a_scheduler_that_takes_them(sd1: Any) -> None:
    sd1.scheduler = build_scheduler("lms", sd1.scheduler.config)
    with pytest.raises(ConfigError, match="LMSDiscreteScheduler takes no timesteps"):
        sd1("a", timesteps=[5, 1])


def test_embeddings_of_unequal_lengths(sd1: Any) -> None:
    with pytest.raises(ConfigError, match=r"\(1, 16, 32\) and negative_prompt_embeds \(1, 9, 32\)"):
        sd1("a", negative_prompt_embeds=tensor(1, 9, 32))


def test_embeddings_encoded_in_pieces_need_negative_ones(
    sd1: Any, sdxl: Any, draw: Callable[..., torch.Tensor]
) -> None:
    """Twice what the encoder reads: no negative prompt can be encoded at that length, but one may be passed."""
    embeds = torch.randn(1, 2 * LENGTH, 32)
    for words in ({}, {"negative_prompt": "a"}):
        with pytest.raises(ConfigError, match=r"32 tokens and the text encoder reads 16.*repeated to 32"):
            draw(sd1, prompt_embeds=embeds, **words)
    empty = sd1.encode_prompt("", negative_prompt="")[1].repeat(1, 2, 1)
    draw(sd1, prompt_embeds=embeds, negative_prompt_embeds=empty)
    draw(sd1, prompt_embeds=embeds, guidance_scale=1.0)
    given = {"prompt_embeds": torch.randn(1, 2 * LENGTH, 72), "pooled_prompt_embeds": torch.randn(1, 24)}
    draw(sdxl, **given)  # whose negative is zeros
    with pytest.raises(ConfigError, match="32 tokens and the text encoder reads 16, so negative_prompt cannot"):
        draw(sdxl, negative_prompt="a", **given)


def test_an_inpainting_unet_is_told_from_a_text_to_image_one(build: dict[str, Callable[..., Any]]) -> None:
    pipe = build["sd1"](unet=build["unet"](in_channels=9))
    with pytest.raises(ConfigError, match=r"UNet takes 9 channels .* latents have 4: this is an inpainting"):
        pipe("a cat")


@pytest.mark.parametrize(
    ("kept", "lost"), [("abc defg hijk lmn", "op qrs"), ("a b c d e f g h i j k l m n", "z"), ("abcdefghijklmn", "!?")]
)
def test_a_long_prompt_is_cut_with_a_warning_that_quotes_it(sd1: Any, kept: str, lost: str) -> None:
    """The tiny tokenizer has one token per letter, and two of 16 are for begin and end."""
    assert len(kept.replace(" ", "")) == LENGTH - 2
    text = f"{kept} {lost}"
    with pytest.warns(UserWarning, match="^prompt has .* the text encoder reads 16") as caught:
        sd1(text, num_inference_steps=1)
    assert [str(warning.message).partition("no effect: ")[2] for warning in caught] == [repr(lost)]
    with pytest.warns(UserWarning, match=f"^negative_prompt has .*{re.escape(repr(lost))}$"):
        sd1("a", negative_prompt=text, num_inference_steps=1)


def test_a_prompt_that_just_fits_is_not_warned_of(sd1: Any) -> None:
    sd1("a" * (LENGTH - 2), num_inference_steps=1)  # warnings are errors here
