"""ControlNets against diffusers' on the same random weights: the network alone, and the pipelines.

Tolerances: 1e-5 of the largest value for the network, those of test_pipelines for pictures' latents.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.controlnet_files import (
    LATENTS,
    NAMES,
    VISIBLE,
    Pair,
    check,
    control_of,
    draw,
    pairs_of,
    picture,
)

import leandiffusion
from leandiffusion import ConfigError, ControlNetModel

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TINY: dict[str, Any] = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8,
    "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "conditioning_embedding_out_channels": (8, 16, 16, 24),
}  # fmt: skip
VARIANTS = {
    "sd1": {},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 4)},
    "sdxl": {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80,
        "use_linear_projection": True, "transformer_layers_per_block": (1, 2),
    },
    "bgr": {"controlnet_conditioning_channel_order": "bgr"},
    "pooled": {"global_pool_conditions": True},
}  # fmt: skip


def random_controlnet(folder: Path, **config: Any) -> Any:
    """diffusers', with no weight left at zero, saved in the folder."""
    torch.manual_seed(0)
    net = diffusers.ControlNetModel(**TINY | config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    net.save_pretrained(folder)
    return net


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network(tmp_path: Path, variant: str, guess: bool) -> None:
    theirs = random_controlnet(tmp_path, **VARIANTS[variant])
    ours = ControlNetModel.from_pretrained(tmp_path)
    torch.manual_seed(1)
    inputs: dict[str, Any] = {
        "sample": torch.randn(2, 4, 8, 12), "timestep": 13, "encoder_hidden_states": torch.randn(2, 7, 32),
        "controlnet_cond": torch.rand(2, 3, 64, 96), "conditioning_scale": 0.7, "guess_mode": guess,
    }  # fmt: skip
    if variant == "sdxl":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 32), "time_ids": torch.rand(2, 6) * 100}
    with torch.no_grad():
        expected, got = theirs(**inputs), ours(**inputs)
        embedded = ours.embed_condition(inputs.pop("controlnet_cond"))
        again = ours(**inputs, embedded=embedded, return_dict=False)
    pairs = [
        *zip(got.down_block_res_samples, expected.down_block_res_samples, strict=True),
        (got.mid_block_res_sample, expected.mid_block_res_sample),
    ]
    for one, other in pairs:
        assert other.abs().max() > 1e-3, "nothing to compare"
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
    assert all(torch.equal(one, other) for one, other in zip(again[0], got.down_block_res_samples, strict=True))


def test_one_made_anew_is_the_same_of_the_same_seed() -> None:
    """And adds nothing: where it begins and ends there are zeros."""
    made = []
    for library in (diffusers, leandiffusion):
        torch.manual_seed(3)
        made.append(library.ControlNetModel(**TINY | VARIANTS["sdxl"]).state_dict())
    theirs, ours = made
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    assert not ours["controlnet_mid_block.weight"].any()


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_one_made_for_a_unet(tiny: Callable[[str], tuple[Any, Path]], family: str, copies: bool) -> None:
    plain, folder = tiny(family)
    own = leandiffusion.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    asked: dict[str, Any] = {
        "conditioning_channels": 4, "controlnet_conditioning_channel_order": "bgr", "load_weights_from_unet": copies,
        "conditioning_embedding_out_channels": (8, 16),
    }  # fmt: skip
    made = []
    for cls, unet in ((diffusers.ControlNetModel, plain.unet), (ControlNetModel, own)):
        torch.manual_seed(3)
        made.append(cls.from_unet(unet, **asked))
    theirs, ours = (net.state_dict() for net in made)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    assert torch.equal(ours["mid_block.resnets.0.conv1.weight"], own.mid_block.resnets[0].conv1.weight) is copies
    assert made[1].config.controlnet_conditioning_channel_order == "bgr"


# -- pipelines ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def pair(
    request: pytest.FixtureRequest, tiny: Callable[[str], tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Pair]:
    """diffusers' pipeline and ours with so many ControlNets, the same weights in both."""
    return pairs_of(request.param, tiny, tmp_path_factory)


@pytest.mark.parametrize(
    "own",
    [
        {}, {"controlnet_conditioning_scale": 0.4}, {"guess_mode": True}, {"guidance_scale": 1.0},
        {"control_guidance_start": 0.3, "control_guidance_end": 0.7}, {"height": 32, "width": 48},
        {"guess_mode": True, "guidance_scale": 1.0}, {"prompt": ["a red cat", "a dog"], "num_images_per_prompt": 2},
    ],
    ids=str,
)  # fmt: skip
def test_a_picture_that_guides(pair: Callable[[int], Pair], own: dict[str, Any]) -> None:
    both = pair(1)
    got = check(both, image=picture(1), **own)
    other = draw(both[1], image=picture(2), **own)
    assert (got - other).abs().max() > VISIBLE * got.abs().max(), "the picture matters"


def test_a_picture_for_each_prompt(pair: Callable[[int], Pair]) -> None:
    check(pair(1), image=picture(1, 2, 3, 64, 64), prompt=["a red cat", "a dog"], num_images_per_prompt=2)


TASKS = {
    "Img2Img": {"image": picture(3), "strength": 0.6},
    "Inpaint": {"image": picture(3), "mask_image": torch.ones(1, 1, 64, 64).triu(), "height": 64, "width": 64},
}  # fmt: skip


@pytest.mark.parametrize("own", [{}, {"guess_mode": True}, {"controlnet_conditioning_scale": 0.3}], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_on_a_picture(pair: Callable[[int], Pair], task: str, own: dict[str, Any]) -> None:
    plain = pair(1)
    name = type(plain[1]).__name__.replace("Pipeline", f"{task}Pipeline")
    both = getattr(diffusers, name)(**plain[0].components), getattr(leandiffusion, name)(**plain[1].components)
    for pipe in both:
        pipe.set_progress_bar_config(disable=True)
    got = check(both, control_image=picture(1), **TASKS[task], **own)
    other = draw(both[1], control_image=picture(2), **TASKS[task], **own)
    assert (got - other).abs().max() > VISIBLE * got.abs().max(), "the picture matters"


def of_few_steps(make: Callable[..., Any], folder: Path, task: str, **unet: Any) -> Pair:
    """diffusers' pipeline and ours with LCM's scheduler and a ControlNet."""
    plain = make(unet=unet)
    plain.scheduler = diffusers.LCMScheduler.from_config(plain.scheduler.config)
    plain.save_pretrained(folder / "model")
    net = control_of(make().unet, folder / "controlnet", 0)  # diffusers makes none of a distilled UNet
    name = f"StableDiffusionControlNet{task}Pipeline"
    theirs = getattr(diffusers, name)(**plain.components, controlnet=net)
    own = ControlNetModel.from_pretrained(folder / "controlnet")
    ours = getattr(leandiffusion, name).from_pretrained(folder / "model", controlnet=own)
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    return theirs, ours


FEW_STEPS = [{"num_inference_steps": 3}, {"num_inference_steps": None, "timesteps": [999, 499]}]


@pytest.mark.parametrize("asked", FEW_STEPS, ids=str)
def test_a_distilled_unet(build_sd1: Callable[..., Any], tmp_path: Path, asked: dict[str, Any]) -> None:
    """It hears the guidance scale, which the ControlNet does not; there is one call of each per step."""
    both = of_few_steps(build_sd1, tmp_path, "", time_cond_proj_dim=16)
    asked = asked | {"image": picture(1), "controlnet_conditioning_scale": 0.05}
    got = check(both, **asked)
    louder = draw(both[1], **asked, guidance_scale=9.0)
    assert (got - louder).abs().max() > 10 * LATENTS * got.abs().max(), "the scale is heard"


@pytest.mark.parametrize("task", TASKS)
def test_few_steps_on_a_picture(build_sd1: Callable[..., Any], tmp_path: Path, task: str) -> None:
    check(of_few_steps(build_sd1, tmp_path, task), control_image=picture(1), num_inference_steps=4, **TASKS[task])


@pytest.mark.parametrize("task", TASKS)
def test_a_distilled_unet_on_a_picture(build_sd1: Callable[..., Any], tmp_path: Path, task: str) -> None:
    """With ControlNets diffusers guides these by two predictions, without telling the UNet of the scale. Here they are
    drawn as without ControlNets, and as by both pipelines without."""
    theirs, ours = of_few_steps(build_sd1, tmp_path, task, time_cond_proj_dim=16)
    parts = {name: part for name, part in theirs.components.items() if name != "controlnet"}
    plain = getattr(diffusers, f"StableDiffusion{task}Pipeline")(**parts)
    plain.set_progress_bar_config(disable=True)
    expected = draw(plain, num_inference_steps=4, **TASKS[task])
    got = draw(ours, num_inference_steps=4, control_image=picture(1), controlnet_conditioning_scale=0.0, **TASKS[task])
    assert (got - expected).abs().max() < LATENTS * expected.abs().max()
    along = draw(ours, num_inference_steps=4, control_image=picture(1), **TASKS[task])
    assert (got - along).abs().max() > VISIBLE * got.abs().max(), "the ControlNet counts"


def test_techniques_change_nothing(pair: Callable[[int], Pair]) -> None:
    ours = pair(2)[1]
    plain = draw(ours, image=[picture(1), picture(2)])
    for name in ("sequential_offload", "model_offload", "attention_slicing", "channels_last", "unet_slicing"):
        ours.enable(name)
        got = draw(ours, image=[picture(1), picture(2)])
        assert (got - plain).abs().max() < 1e-5 * plain.abs().max(), name
        ours.disable(name)
    assert torch.equal(draw(ours, image=[picture(1), picture(2)]), plain)


def test_what_does_not_fit_is_told(pair: Callable[[int], Pair], tmp_path: Path) -> None:
    ours = pair(1)[1]
    cases = [
        ({"image": None}, "picture is missing"),
        ({"image": [picture(1), picture(2)]}, "entries for 1 pictures"),
        ({"image": picture(1, 1, 4, 64, 64)}, "4 channels, and it sees 3"),
        ({"image": picture(1), "control_guidance_start": 0.8, "control_guidance_end": 0.5}, "is not before"),
        ({"image": picture(1), "control_guidance_start": 1.5}, "control_guidance_start"),
        ({"image": picture(1), "controlnet_conditioning_scale": [1.0, 1.0]}, "2 entries for 1 ControlNets"),
    ]
    for asked, told in cases:
        with pytest.raises(ConfigError, match=told):
            draw(ours, **asked)
    random_controlnet(tmp_path, cross_attention_dim=768)
    with pytest.raises(ConfigError, match="made for Stable Diffusion 1, and this model is"):
        type(ours)(**{**ours.components, "controlnet": ControlNetModel.from_pretrained(tmp_path)})
    for wrong, told in ((None, "controlnet is missing"), ([], "controlnet is missing"), (["canny"], "is a str")):
        with pytest.raises(ConfigError, match=told):
            type(ours)(**{**ours.components, "controlnet": wrong})


def test_only_prompts(pair: Callable[[int], Pair]) -> None:
    """A pipeline of text encoders and tokenizers alone has no ControlNet either, and encodes prompts."""
    ours = pair(1)[1]
    parts = {name: part if "text" in name or "token" in name else None for name, part in ours.components.items()}
    encode = {"prompt": "a cat", "device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    assert torch.equal(type(ours)(**parts).encode_prompt(**encode)[0], ours.encode_prompt(**encode)[0])
