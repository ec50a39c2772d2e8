"""From latents to pictures: overflow in half precision, numbers that are none, the safety checker's part."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leandiffusion import NonFiniteError
from leandiffusion.pipelines.images import to_output
from leandiffusion.run import decoding
from leandiffusion.run.decoding import decode
from leandiffusion.run.guidance import rescale_contrast

Draw = Callable[..., torch.Tensor]


class Watched:
    """Remembers at which dtypes a VAE's decoder ran, copies of it included."""

    def __init__(self, vae: Any) -> None:
        self.dtypes: list[torch.dtype] = []
        vae.decoder.register_forward_pre_hook(lambda module, inputs: self.dtypes.append(inputs[0].dtype))

    def __deepcopy__(self, memo: Any) -> Watched:
        return self


def overflowing(vae: Any) -> Any:
    """Activations beyond 65504, the largest float16, on the way to an ordinary picture."""
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e5)
        vae.decoder.conv_in.bias.mul_(1e5)
    return vae


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_float16_vae_that_overflows_decodes_in_float32(build: Any, latents: torch.Tensor) -> None:
    vae = overflowing(build["vae"]())
    watch = Watched(vae)
    expected = decode(vae, latents)
    vae.half()
    rounded = {name: tensor.float() for name, tensor in vae.state_dict().items()}
    got = decode(vae, latents.half())
    assert watch.dtypes == [torch.float32, torch.float16, torch.float32]
    assert vae.dtype == torch.float16
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 0.02, "float32 arithmetic on weights rounded to float16"
    vae.float().load_state_dict(rounded)
    assert torch.equal(decode(vae, latents.half().float()), got)


@pytest.mark.parametrize(("family", "dtypes"), [("sd1", [torch.float16]), ("sdxl", [torch.float32])])
def test_force_upcast_is_heeded_for_sdxl_alone(build: Any, draw: Draw, family: str, dtypes: list[torch.dtype]) -> None:
    """The setting is true by default, also of SD1's VAE, whose numbers fit float16."""
    pipe = build[family]()
    pipe.vae.half()
    watch = Watched(pipe.vae)
    assert pipe.vae.config.force_upcast
    draw(pipe)
    assert watch.dtypes == dtypes


def test_force_upcast_false(build: Any, draw: Draw) -> None:
    pipe = build["sdxl"](vae=build["vae"](force_upcast=False).half())
    watch = Watched(pipe.vae)
    draw(pipe)
    assert watch.dtypes == [torch.float16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_broken_vae_is_an_error_that_names_the_stage(sd1: Any, draw: Draw, dtype: torch.dtype) -> None:
    with torch.no_grad():
        sd1.vae.decoder.conv_out.bias[0] = float("nan")
    sd1.vae.to(dtype)
    with pytest.raises(NonFiniteError, match="decoded picture holds NaN or infinity even in float32: the VAE"):
        draw(sd1)


def when_float32(layer: torch.nn.Module, inputs: Any) -> None:
    if inputs[0].dtype == torch.float32:
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("moment", ["making the copy", "running it"])
def test_where_float32_does_not_fit_bfloat16_takes_its_place(
    build: Any, latents: torch.Tensor, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = overflowing(build["vae"]()).half()
    expected = decode(vae, latents.half())
    if moment == "running it":
        vae.use_tiling = True
        vae.decoder.conv_in.register_forward_pre_hook(when_float32)
    else:
        copied = decoding.copied

        def fail(vae: Any, device: torch.device, dtype: torch.dtype, without: tuple[str, ...]) -> Any:
            if dtype == torch.float32:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return copied(vae, device, dtype, without)

        monkeypatch.setattr(decoding, "copied", fail)
    with pytest.warns(UserWarning, match="float32 did not fit in memory: this picture is decoded in bfloat16"):
        got = decode(vae, latents.half())
    assert (got - expected).abs().mean() < 0.02, "8 bits instead of 24"
    assert vae.dtype == torch.float16
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] = float("nan")
    with pytest.warns(match="bfloat16"), pytest.raises(NonFiniteError, match="NaN or infinity even in bfloat16"):
        decode(vae, latents.half())


def test_another_failure_in_float32_is_not_hidden(build: Any, latents: torch.Tensor) -> None:
    vae = overflowing(build["vae"]()).half()

    def fail(layer: torch.nn.Module, inputs: Any) -> None:
        if inputs[0].dtype == torch.float32:
            raise RuntimeError("stop")

    vae.decoder.conv_in.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        decode(vae, latents.half())


def test_what_does_not_fit_at_once_is_decoded_in_strips(build: Any, latents: torch.Tensor) -> None:
    vae = build["vae"]()
    expected = decode(vae, latents)
    handle = vae.decoder.register_forward_pre_hook(when_float32)  # strips go to the decoder's layers
    with pytest.warns(UserWarning, match=r"goes on in strips: pipe.enable_vae_tiling\(\)"):
        got = decode(vae, latents)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)  # float32 sums in another order
    handle.remove()
    assert not vae.use_tiling
    assert torch.equal(decode(vae, latents), expected)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["pt", "latent"])
def test_latents_that_are_no_numbers(sd1: Any, draw: Draw, number: float, kind: str) -> None:
    plain, bias = draw(sd1), sd1.unet.conv_out.bias.detach().clone()
    sd1.unet.conv_out.bias.data[0] = number
    with pytest.raises(NonFiniteError, match=r"denoised latents .*torch.float32.*: the UNet"):
        draw(sd1, output_type=kind)
    sd1.unet.conv_out.bias.data = bias
    assert torch.equal(draw(sd1), plain)


def test_they_are_found_at_the_first_step(sd1: Any, draw: Draw) -> None:
    sd1.unet.conv_out.bias.data[0] = float("nan")
    steps: list[int] = []
    with pytest.raises(NonFiniteError):
        draw(sd1, callback_on_step_end=lambda pipe, i, t, tensors: steps.append(i))
    assert steps == [0]


def test_forms_of_output() -> None:
    pictures = torch.rand(2, 3, 4, 6)
    array, images = to_output(pictures, "np"), to_output(pictures, "pil")
    assert array.shape == (2, 4, 6, 3)
    assert all(isinstance(image, Image.Image) and image.size == (6, 4) for image in images)
    np.testing.assert_array_equal(np.asarray(images[1]), np.round(array[1] * 255).astype(np.uint8))
    assert to_output(pictures, "pt") is pictures


def test_rescaled_contrast() -> None:
    """At 1 the guided prediction gets the reference's standard deviation per picture; at 0 it stays as it is."""
    guided, reference = 5 * torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    matched = rescale_contrast(guided, reference, 1.0)
    torch.testing.assert_close(matched.std(dim=(1, 2, 3)), reference.std(dim=(1, 2, 3)))
    assert torch.equal(rescale_contrast(guided, reference, 0.0), guided)


def test_flagged_pictures_stay_tensors(sd1: Any, draw: Draw) -> None:
    """The checker sees preprocessed pictures and gets the very tensor that is returned."""
    plain = draw(sd1, num_images_per_prompt=2)

    class Checker(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, images: torch.Tensor, clip_input: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
            assert clip_input.shape == (2, 3, 64, 64)
            return images * torch.tensor([1.0, 0.0])[:, None, None, None], [False, np.bool_(True)]

    def extract(images: list[Image.Image], return_tensors: str) -> SimpleNamespace:
        pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
        return SimpleNamespace(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2))

    sd1.safety_checker, sd1.feature_extractor = Checker(), extract
    result = sd1("a red cat", num_inference_steps=4, num_images_per_prompt=2, output_type="pt",
                 generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert result.nsfw_content_detected == [False, True]
    assert torch.equal(result.images[0], plain[0])
    assert not result.images[1].any()
    assert list(sd1.last_times) == ["encode", "denoise", "decode", "safety"]
    assert sd1("a", output_type="latent", num_inference_steps=1).nsfw_content_detected is None
