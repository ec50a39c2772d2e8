"""IP-Adapters of a pipeline: what is refused before anything is computed, and that nothing changes then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.parity import ip_adapter_files as files
from tests.unit.pipelines.conftest import make_sd1, make_sdxl, quiet
from torch import Tensor

from leandiffusion import ConfigError
from leandiffusion.core.errors import CheckpointNotFound, NotSupported, TensorMismatch, UnsafeFormat
from leandiffusion.modules.vision import CLIPVisionModelWithProjection
from leandiffusion.weights.residence import names_on_disk, tensors_of
from leandiffusion.weights.stored import StoredTensor

SEEN = Image.new("RGB", (40, 30), "orange")


@pytest.fixture
def pipe() -> Any:
    return quiet(make_sd1())


@pytest.fixture
def file(pipe: Any, tmp_path: Path) -> Path:
    return files.save_adapter(tmp_path, pipe.unet)


def changed(pipe: Any, change: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    tensors = files.tensors(pipe.unet)
    change(tensors)
    return tensors


def draw(pipe: Any, **arguments: Any) -> Any:
    return pipe("a red circle", num_inference_steps=2, output_type="latent", **arguments).images


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda t: t.clear(), TensorMismatch, "is no IP-Adapter"),
        (lambda t: t.update(odd=torch.zeros(1)), TensorMismatch, "it holds odd"),
        (lambda t: t.pop("ip_adapter.1.to_k_ip.weight"), TensorMismatch, "is no IP-Adapter"),
        (lambda t: [t.pop(f"ip_adapter.1.to_{x}_ip.weight") for x in "kv"], TensorMismatch, "do not fit the"),
        (lambda t: t.pop("image_proj.norm.bias"), TensorMismatch, "see norm.bias"),
        (lambda t: t.update({"image_proj.proj.0.weight": torch.zeros(1, 1)}), NotSupported, "Face ID"),
        (lambda t: t.update({"ip_adapter.1.to_k_ip.weight": torch.zeros(3)}), TensorMismatch, "no matrices"),
    ],
)
def test_files_that_are_none_or_of_another_model(pipe: Any, change: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        pipe.load_ip_adapter(changed(pipe, change), image_encoder_folder=None)
    assert not hasattr(pipe.unet, "_image_adapters")


def test_another_familys_adapter(pipe: Any) -> None:
    other = files.tensors(make_sdxl().unet)
    with pytest.raises(TensorMismatch, match=r"for a model whose UNet reads texts of width \d+, and this model is"):
        pipe.load_ip_adapter(other, image_encoder_folder=None)


def test_pickles_and_missing_files(pipe: Any, file: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFormat, match=r"is a pickle.*torch\.load"):
        pipe.load_ip_adapter(tmp_path, subfolder="models", weight_name="ip-adapter_sd15.bin")
    with pytest.raises(CheckpointNotFound, match=r"none\.safetensors does not exist"):
        pipe.load_ip_adapter(tmp_path, subfolder="models", weight_name="none.safetensors")
    with pytest.raises(CheckpointNotFound, match="with weight_name"):
        pipe.load_ip_adapter(tmp_path)
    with pytest.raises(CheckpointNotFound, match="no image encoder in"):
        pipe.load_ip_adapter(file, image_encoder_folder="elsewhere")
    save_file(changed(pipe, lambda t: None), tmp_path / "alone.safetensors")
    assert pipe.image_encoder is None


def test_another_image_encoder(pipe: Any, file: Path) -> None:
    pipe.image_encoder = CLIPVisionModelWithProjection(**{**files.ENCODER, "projection_dim": 20})
    with pytest.raises(TensorMismatch, match="width 24, and this image encoder makes such of width 20"):
        pipe.load_ip_adapter(file)


def test_an_encoder_that_is_not_used_need_not_fit(pipe: Any, file: Path) -> None:
    """Where pictures come as embeddings: only a picture that it would have to see is refused."""
    pipe.image_encoder = CLIPVisionModelWithProjection(**{**files.ENCODER, "projection_dim": 20})
    pipe.load_ip_adapter(file, image_encoder_folder=None)
    embeds = torch.rand(2, 1, 24, generator=torch.Generator().manual_seed(0))
    drawn = [
        draw(pipe, ip_adapter_image_embeds=[each], generator=torch.Generator().manual_seed(1))
        for each in (embeds, -embeds)
    ]
    assert not torch.equal(*drawn)
    with pytest.raises(TensorMismatch, match="width 24, and this image encoder makes such of width 20"):
        draw(pipe, ip_adapter_image=SEEN)


def test_calls_that_do_not_fit_what_is_loaded(pipe: Any, file: Path) -> None:
    pipe.load_ip_adapter(file)
    embeds = pipe.prepare_ip_adapter_image_embeds([SEEN], None, None, 1, True)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "has nothing to see"),
        ({"ip_adapter_image": [SEEN, SEEN]}, "2 pictures for 1 IP-Adapter"),
        ({"ip_adapter_image": "cat.png"}, "holds a str"),
        ({"ip_adapter_image": SEEN, "ip_adapter_image_embeds": embeds}, "says the same thing"),
        ({"ip_adapter_image_embeds": embeds * 2}, "2 ip_adapter_image_embeds for 1"),
        ({"ip_adapter_image_embeds": embeds, "guidance_scale": 1.0}, "as there is no guidance"),
        ({"ip_adapter_image_embeds": [embeds[0][..., :5]]}, r"expected \(2, images, 24\)"),
    ]
    for arguments, told in wrong:
        with pytest.raises(ConfigError, match=told):
            draw(pipe, **arguments)
    with pytest.raises(ConfigError, match="2 scales for 1"):
        pipe.set_ip_adapter_scale([1.0, 2.0])
    with pytest.raises(ConfigError, match="'sideways' is none of down, mid, up"):
        pipe.set_ip_adapter_scale({"sideways": 1.0})
    pipe.unload_ip_adapter()
    with pytest.raises(ConfigError, match="no IP-Adapter is loaded"):
        pipe.set_ip_adapter_scale(1.0)


def test_a_processor_of_ones_own_would_not_see_the_picture(pipe: Any, file: Path) -> None:
    pipe.load_ip_adapter(file)
    pipe.unet.set_attn_processor(lambda attn, x, encoder_hidden_states=None, attention_mask=None: x)
    with pytest.raises(ConfigError, match="a processor of your own"):
        draw(pipe, ip_adapter_image=SEEN)


def test_pictures_may_be_arrays(pipe: Any, file: Path) -> None:
    pipe.load_ip_adapter(file)
    whole = np.asarray(SEEN)
    generator = torch.Generator()
    drawn = [
        draw(pipe, ip_adapter_image=each, generator=generator.manual_seed(0))
        for each in (SEEN, whole, (whole / 255).astype(np.float32))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_a_scale_of_nothing_is_as_without(pipe: Any, file: Path) -> None:
    generator = torch.Generator()
    plain = draw(pipe, generator=generator.manual_seed(0))
    pipe.load_ip_adapter(file)
    pipe.set_ip_adapter_scale(0.0)
    again = draw(pipe, ip_adapter_image=SEEN, generator=generator.manual_seed(0))
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-5)


def test_the_encoder_stays_on_disk(pipe: Any, file: Path) -> None:
    pipe.load_ip_adapter(file)
    draw(pipe, ip_adapter_image=SEEN)
    weights = tensors_of(pipe.image_encoder).values()
    assert all(isinstance(weight, StoredTensor) and weight.on_disk for weight in weights)
    assert names_on_disk(pipe.image_encoder) == []  # of those that a use would load for good
