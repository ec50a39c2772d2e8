"""Drawing on pictures: the stage in which they are encoded, what is in memory then, and what is done when it fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from leandiffusion import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    NonFiniteError,
    StableDiffusionPipeline,
)
from leandiffusion.run.encoding import encode
from leandiffusion.weights.stored import StoredTensor

PICTURE = Image.new("RGB", (64, 64), "blue")
ImageDraw.Draw(PICTURE).ellipse((8, 8, 40, 40), fill="yellow")
MASK = Image.new("L", (64, 64))
ImageDraw.Draw(MASK).rectangle((32, 0, 64, 64), fill="white")
AUTO = {"image-to-image": AutoPipelineForImage2Image, "inpainting": AutoPipelineForInpainting}


def draw(pipe: Any, **arguments: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    mask = {"mask_image": MASK, "height": 64, "width": 64} if "Inpaint" in type(pipe).__name__ else {}
    generator = torch.Generator().manual_seed(3)
    asked = {"num_inference_steps": 4, "strength": 0.6, "output_type": "np", "generator": generator} | mask
    return pipe("a red circle", **{"image": PICTURE} | asked | arguments).images


@pytest.fixture(params=AUTO)
def pipe(request: pytest.FixtureRequest) -> Any:
    return AUTO[request.param].from_pretrained("demo")


def encoder_on_disk(vae: Any) -> bool:
    weights = [p for name, p in vae.named_parameters() if name.startswith(("encoder.", "quant_conv."))]
    return all(isinstance(weight, StoredTensor) and weight.on_disk for weight in weights)


def test_the_picture_is_encoded_in_a_stage_of_its_own(pipe: Any) -> None:
    stages: list[str] = []

    @contextmanager
    def watch(stage: str) -> Iterator[None]:
        stages.append(stage)
        yield

    pipe.watch = watch
    draw(pipe)
    assert stages == ["encode", "picture", "denoise", "decode"]
    assert pipe.last_times["picture"] > 0
    assert pipe.num_timesteps == 2


def test_text_to_image_has_no_such_stage() -> None:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    pipe("a red circle", num_inference_steps=1, height=64, width=64)
    assert "picture" not in pipe.last_times


@pytest.mark.parametrize("technique", [None, "sequential_offload", "model_offload", "vae_tiling", "packed_weights"])
def test_the_encoder_takes_no_memory_afterwards(pipe: Any, technique: str | None) -> None:
    if technique is not None:
        pipe.enable(technique)
    draw(pipe)
    assert encoder_on_disk(pipe.vae)


def test_reading_the_encoder_loads_nothing_of_the_compiler() -> None:
    """Torch's own way for tensors that are on disk imports symbolic algebra: seconds, and 60 MB of memory."""
    script = """
import sys
from PIL import Image
from leandiffusion import AutoPipelineForImage2Image
pipe = AutoPipelineForImage2Image.from_pretrained("demo")
pipe.set_progress_bar_config(disable=True)
for _ in range(2):
    pipe("a", image=Image.new("RGB", (64, 64)), num_inference_steps=1, strength=1.0)
    pipe.enable_vae_tiling(rows=16)
assert "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_latents_need_no_encoder(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoencoderKL, "encode", lambda *_, **__: pytest.fail("something was encoded"))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert draw(pipe, image=latents).shape == (1, 64, 64, 3)


def test_a_plain_unet_needs_the_masked_picture_for_callbacks_alone() -> None:
    pipe = AutoPipelineForInpainting.from_pretrained("demo")
    encoded: list[int] = []
    inner = pipe.vae.encode
    pipe.vae.encode = lambda *args, **options: encoded.append(1) or inner(*args, **options)
    plain = draw(pipe)
    assert len(encoded) == 1
    seen: list[torch.Tensor] = []
    names = ["masked_image_latents"]
    watched = draw(
        pipe, callback_on_step_end=lambda *args: seen.append(args[-1][names[0]]),
        callback_on_step_end_tensor_inputs=names,
    )  # fmt: skip
    assert len(encoded) == 3
    assert [tuple(each.shape) for each in seen] == [(2, 4, 8, 8)] * 2
    assert np.array_equal(plain, watched), "the noise that later steps draw is the same"


def test_what_the_mask_leaves_out_stays() -> None:
    pipe = AutoPipelineForInpainting.from_pretrained("demo")
    drawn = draw(pipe, strength=1.0)[0]
    kept = draw(pipe, strength=1.0, mask_image=Image.new("L", (64, 64)))[0]  # what the VAE makes of the picture
    assert np.abs(drawn[:, :20] - kept[:, :20]).mean() < 0.02
    assert np.abs(drawn[:, 44:] - kept[:, 44:]).mean() > 0.1


# -- when it fails -----------------------------------------------------------------------------------------------------


def test_where_encoding_does_not_fit_it_goes_on_in_strips(pipe: Any) -> None:
    """And the noise is drawn once: the picture is the same within rounding."""
    expected = draw(pipe)
    fails = iter([True])

    def fail(*_: Any) -> None:
        if next(fails, False):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    pipe.vae.encoder.register_forward_pre_hook(fail)
    with pytest.warns(UserWarning, match="encoding the picture did not fit in memory and goes on in strips"):
        got = draw(pipe)
    assert np.abs(got - expected).max() < 2e-4
    assert not pipe.vae.use_tiling


def tiny() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, sample_size=16,
    ).eval()  # fmt: skip


@torch.no_grad()
def test_where_half_precision_overflows_encoding_is_repeated() -> None:
    vae, pictures = tiny(), torch.rand(1, 3, 16, 16) * 2 - 1
    vae.encoder.conv_in.weight.mul_(1e5)  # group norms behind it bring that back
    expected = encode(vae, pictures)
    half = encode(vae.half(), pictures)
    assert half.mean.dtype == torch.float16
    assert (half.mean.float() - expected.mean).abs().max() < 0.05 * expected.mean.abs().max()
    assert vae.dtype == torch.float16
    upcast = encode(vae, pictures, upcast=True)
    assert upcast.mean.dtype == torch.float32, "its noise is drawn in float32 too, as in diffusers"


@torch.no_grad()
def test_damaged_weights_are_told() -> None:
    vae = tiny()
    vae.encoder.conv_in.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="picture's latents hold NaN"):
        encode(vae, torch.zeros(1, 3, 16, 16))
