"""Numbers that no picture can come from: an error that names the stage, never a flat picture; and no false alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from leandiffusion import DDIMScheduler, NonFiniteError
from leandiffusion.run.decoding import decode
from leandiffusion.run.finite import found_wrong

Draw = Callable[..., torch.Tensor]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def damaged(vae: Any, name: str, value: float) -> Any:
    with torch.no_grad():
        dict(vae.decoder.named_parameters())[name].fill_(value)
    return vae


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [1e3, 1e20, 3e38, -3e38])
def test_a_huge_bias_of_the_last_layer_is_no_white_picture(
    build: Any, latents: torch.Tensor, dtype: torch.dtype, value: float
) -> None:
    vae = damaged(build["vae"](), "conv_out.bias", value).to(dtype)
    with pytest.raises(NonFiniteError, match=r"the decoded picture holds .* even in float32: the VAE's weights"):
        decode(vae, latents)


@pytest.mark.parametrize("name", ["up_blocks.3.resnets.1.conv2.bias", "up_blocks.2.upsamplers.0.conv.bias"])
def test_a_bias_that_swallows_the_picture(build: Any, latents: torch.Tensor, name: str) -> None:
    """In float32 1e8 leaves nothing of what it is added to; a group norm then makes it an ordinary grey."""
    vae = damaged(build["vae"](), name, 1e8)
    with pytest.raises(NonFiniteError, match="has the same value in every pixel even in float32"):
        decode(vae, latents)


@pytest.mark.parametrize("dtype", FLOATS[1:])
@pytest.mark.parametrize("value", [0.3, 6e4])
def test_what_half_precision_loses_is_decoded_in_float32(
    build: Any, latents: torch.Tensor, dtype: torch.dtype, value: float
) -> None:
    vae = build["vae"]().to(dtype)
    twin = build["vae"]()
    twin.load_state_dict({name: tensor.float() for name, tensor in vae.state_dict().items()})

    def lose(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output if output.dtype == torch.float32 else torch.full_like(output, value)

    vae.decoder.register_forward_hook(lose)
    got = decode(vae, latents.to(dtype))
    assert torch.equal(got, decode(twin, latents.to(dtype)))
    assert got.flatten(1).std(dim=1).min() > 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("level", [-3.0, -1.0, 1.0, 1.5, 40.0])
def test_white_and_black_pictures_are_pictures(
    build: Any, latents: torch.Tensor, dtype: torch.dtype, level: float
) -> None:
    """Clamped to one value throughout, or nearly, and yet drawn."""
    vae = build["vae"]()
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(0.01)
        vae.decoder.conv_out.bias.fill_(level)
    picture = decode(vae.to(dtype), latents.to(dtype))
    assert picture.mean() > 0.95 if level > 0 else picture.mean() < 0.05


def test_latents_of_one_value_may_give_a_picture_of_one_value() -> None:
    grey, varied = torch.zeros(2, 3, 8, 8), torch.randn(2, 4, 1, 2)
    assert found_wrong(grey, torch.zeros(2, 4, 1, 2)) is None
    assert found_wrong(grey, varied) == "has the same value in every pixel"
    varied[0] = 1.0
    assert found_wrong(grey, varied) == "has the same value in every pixel", "the second of them"
    assert found_wrong(torch.rand(1, 3, 8, 8), varied[:1]) is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("family", "encoder", "found"), [
    ("sd1", "text_encoder", "prompt_embeds"), ("sdxl", "text_encoder", "prompt_embeds"),
    ("sdxl", "text_encoder_2", "prompt_embeds"),
])  # fmt: skip
def test_a_text_encoder_without_numbers(
    request: pytest.FixtureRequest, draw: Draw, family: str, encoder: str, found: str, number: float
) -> None:
    pipe = request.getfixturevalue(family)
    first = next(p for n, p in getattr(pipe, encoder).named_parameters() if n.endswith("layers.0.mlp.fc2.bias"))
    first.data[0] = number
    with pytest.raises(NonFiniteError, match=rf"^{found} hold NaN or infinity \(torch.float32\): the text encoder"):
        draw(pipe)
    with pytest.raises(NonFiniteError, match=found):
        pipe.encode_prompt("a")


def test_a_pooled_output_without_numbers(sdxl: Any, draw: Draw) -> None:
    sdxl.text_encoder_2.text_projection.weight.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^pooled_prompt_embeds hold NaN"):
        draw(sdxl)


def test_a_layer_that_is_skipped_does_not_matter(sdxl: Any, draw: Draw) -> None:
    """SDXL reads the layer before the last of its first encoder."""
    plain = draw(sdxl)
    last = next(p for n, p in sdxl.text_encoder.named_parameters() if n.endswith("layers.1.mlp.fc2.bias"))
    last.data[0] = float("nan")
    assert torch.equal(draw(sdxl), plain)


@pytest.mark.parametrize("which", ["prompt_embeds", "negative_prompt_embeds", "latents"])
def test_what_is_passed_without_numbers(sd1: Any, which: str) -> None:
    given = {"prompt_embeds": torch.randn(1, 16, 32), "negative_prompt_embeds": torch.randn(1, 16, 32),
             "latents": torch.randn(1, 4, 8, 8)}  # fmt: skip
    given[which].view(-1)[5] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"^(the starting )?{which} hold NaN"):
        sd1(num_inference_steps=1, **given)


def test_embeddings_beyond_half_precision(build: Any) -> None:
    pipe = build["sd1"]()
    pipe.unet.half()
    with pytest.raises(NonFiniteError, match=r"^prompt_embeds hold NaN or infinity \(torch.float16\)"):
        pipe.encode_prompt(None, prompt_embeds=torch.full((1, 16, 32), 1e5), negative_prompt="")


def test_infinity_that_a_scheduler_clips_away(sd1: Any, draw: Draw) -> None:
    sd1.scheduler = DDIMScheduler.from_config(sd1.scheduler.config, prediction_type="sample", clip_sample=True)
    draw(sd1)
    sd1.unet.conv_out.bias.data[0] = float("inf")
    with pytest.raises(NonFiniteError, match="the UNet"):
        draw(sd1, guidance_scale=1.0)
