"""A pipeline's components: moving, casting, replacing, leaving out, sharing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leandiffusion import (
    BackendUnavailable,
    ConfigError,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from leandiffusion.pipelines import open_pipeline

Draw = Callable[..., torch.Tensor]
Build = dict[str, Callable[..., Any]]


class ForeignUNet(torch.nn.Module):
    """What a traced or otherwise foreign network offers: two attributes, and a forward with three inputs."""

    def __init__(self, unet: Any, parameters: bool = False) -> None:
        super().__init__()
        self.in_channels, self.device = unet.config.in_channels, unet.device
        self.run = unet.forward  # a bound method is no submodule: no parameters here
        if parameters:
            self.unet = unet

    def forward(self, latent_model_input: Any, t: Any, encoder_hidden_states: Any) -> SimpleNamespace:
        return SimpleNamespace(sample=self.run(latent_model_input, t, encoder_hidden_states).sample)


# -- device and dtype ------------------------------------------------------------------------------------------------


def test_casting(sd1: Any, draw: Draw) -> None:
    assert (sd1.device, sd1.dtype) == (torch.device("cpu"), torch.float32)
    plain = draw(sd1)
    assert sd1.to(torch.bfloat16) is sd1
    assert {network.dtype for network in (sd1.unet, sd1.vae, sd1.text_encoder)} == {sd1.dtype} == {torch.bfloat16}
    rough = draw(sd1)
    assert rough.dtype == torch.float32, "pictures are float32 whatever the weights"
    assert (rough - plain).abs().mean() < 0.1, "the same picture, coarser: bfloat16 has 8 bits, over 4 steps"


@pytest.mark.parametrize(
    "arguments",
    [
        (("cpu",), {}), ((torch.device("cpu"),), {}), (("cpu", torch.float64), {}), ((torch.float64, "cpu"), {}),
        ((), {"device": "cpu"}), ((), {"dtype": torch.float64}), ((), {"torch_dtype": torch.float64}),
        ((), {"torch_device": "cpu", "silence_dtype_warnings": True}), ((), {}), ((None,), {"dtype": None}),
    ],
)  # fmt: skip
def test_ways_to_say_where(sd1: Any, arguments: Any) -> None:
    args, kwargs = arguments
    sd1.to(*args, **kwargs)
    wanted = torch.float64 if torch.float64 in (*args, *kwargs.values()) else torch.float32
    assert (sd1.device.type, sd1.dtype) == ("cpu", wanted)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("gpu",), {}, "device='gpu' is not a device: use 'cpu'"),
        ((torch.int8,), {}, "torch.int8: pass torch.float32"),
        ((), {"dtype": "float16"}, "'float16': pass torch.float32"),
        ((), {"memory_format": torch.channels_last}, "pass a device, a dtype, or both"),
        (("cpu", "cpu"), {}, "device=cpu, device=cpu"),
        (("cpu",), {"device": "cpu"}, "pass a device, a dtype"),
        ((torch.float16,), {"torch_dtype": torch.float32}, "float16, dtype=torch.float32"),
        (([1],), {}, r"device=\[1\] is not a device"),
    ],
)
def test_nonsense_moves_nothing(sd1: Any, args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sd1.to(*args, **kwargs)
    assert (sd1.device.type, sd1.dtype) == ("cpu", torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("place", ["cuda", "cuda:1", 0])
def test_a_device_that_is_not_there(sd1: Any, place: Any) -> None:
    with pytest.raises(BackendUnavailable, match=r"device 'cuda(:[01])?' cannot be used on this machine"):
        sd1.to(place)
    with pytest.raises(BackendUnavailable):
        sd1.to(place, torch.float16)
    assert (sd1.device.type, sd1.dtype) == ("cpu", torch.float32)


# -- sharing and replacing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_components_make_another_pipeline(build: Build, draw: Draw, family: str) -> None:
    pipe = build[family]()
    assert list(pipe.components) == list(pipe.component_names)
    twin = build["quiet"](type(pipe)(**pipe.components))
    assert twin.unet is pipe.unet
    assert torch.equal(draw(twin), draw(pipe))


@pytest.mark.parametrize("parameters", [False, True])
def test_any_module_as_unet(sd1: Any, draw: Draw, parameters: bool) -> None:
    """A wrapper as people write around a traced UNet: the same picture, size, device and dtype as before."""
    plain = draw(sd1)
    sd1.unet = ForeignUNet(sd1.unet, parameters)
    # Nearly: what is not our UNet is given a sample for each text, and products of two rows may add in another order.
    assert torch.allclose(draw(sd1), plain, rtol=0, atol=1e-5)
    assert (sd1.device, sd1.dtype) == (torch.device("cpu"), torch.float32)


def test_a_replaced_unet_keeps_size_and_dtype(build: Build, draw: Draw) -> None:
    pipe = build["sd1"](unet=build["unet"](sample_size=(8, 16))).to(torch.bfloat16)
    pipe.vae.to(torch.float32)
    pipe.unet = ForeignUNet(pipe.unet)
    assert pipe.dtype == torch.bfloat16, "the text encoder's: the UNet has no weights to ask, and the VAE is no judge"
    assert draw(pipe).shape == (1, 3, 64, 128)


def test_another_unet_brings_its_own_size(sd1: Any, build: Build, draw: Draw) -> None:
    sd1.unet = build["unet"](sample_size=4)
    assert draw(sd1).shape == (1, 3, 32, 32)


def test_a_unet_that_returns_a_tuple(sd1: Any, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, forward = draw(sd1), sd1.unet.forward
    monkeypatch.setattr(sd1.unet, "forward", lambda *args, **kwargs: forward(*args, **kwargs, return_dict=False))
    assert torch.allclose(draw(sd1), plain, rtol=0, atol=1e-5)  # nearly, as above


# -- left out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unet", "scheduler", "vae", "text_encoder", "tokenizer"])
def test_a_missing_component(sd1: Any, draw: Draw, name: str) -> None:
    plain, part = draw(sd1), getattr(sd1, name)
    setattr(sd1, name, None)
    with pytest.raises(ConfigError, match=f"has no {name}, .* set pipe.{name} = …"):
        draw(sd1)
    setattr(sd1, name, part)
    assert torch.equal(draw(sd1), plain)


def test_without_vae_for_latents(sd1: Any, draw: Draw) -> None:
    latents = draw(sd1, output_type="latent")
    sd1.vae = None
    assert torch.equal(draw(sd1, output_type="latent"), latents)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_without_text_encoders_for_embeddings(build: Build, draw: Draw, family: str) -> None:
    pipe = build[family]()
    plain = draw(pipe, prompt="a cat", negative_prompt="red")
    with torch.no_grad():  # as in a call: where gradients are recorded, linear layers may take other kernels
        encoded = pipe.encode_prompt("a cat", negative_prompt="red")
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"):
        if hasattr(pipe, name):
            setattr(pipe, name, None)
    assert torch.equal(draw(pipe, **dict(zip(names, encoded, strict=False))), plain)
    with pytest.raises(ConfigError, match=r"has no text_encoder.* or pass prompt_embeds"):
        draw(pipe, prompt="a cat")


def test_sdxl_without_its_first_text_encoder(build: Build, draw: Draw) -> None:
    unet = build["unet"](
        cross_attention_dim=40, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + 6 * 4,
    )  # fmt: skip
    pipe = build["sdxl"](text_encoder=None, tokenizer=None, unet=unet)
    assert draw(pipe).std() > 0
    assert not torch.equal(draw(pipe, prompt_2="dog"), draw(pipe))
    pipe.text_encoder_2 = None
    with pytest.raises(ConfigError, match="has no text_encoder_2"):
        draw(pipe)


@pytest.mark.parametrize("part", ["image_encoder", "safety_checker"])
def test_parts_that_would_have_no_effect(sd1: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        StableDiffusionPipeline(**sd1.components | {part: torch.nn.Identity()})


def test_watermarks_are_refused(sdxl: Any) -> None:
    with pytest.raises(ConfigError, match="add_watermarker"):
        type(sdxl)(**sdxl.components, add_watermarker=True)
    type(sdxl)(**sdxl.components, add_watermarker=False)


def test_repr_names_every_part(sd1: Any) -> None:
    assert "StableDiffusionPipeline (torch.float32, cpu)" in repr(sd1)
    assert f"unet: {UNet2DConditionModel.__name__}" in repr(sd1)


@pytest.mark.parametrize("technique", [None, "attention_slicing", "sequential_offload"])
def test_a_deep_copy_is_a_pipeline_of_its_own(
    folders: dict[str, Any], build: Build, draw: Draw, technique: str | None
) -> None:
    pipe = build["quiet"](open_pipeline(folders["sd1"]))
    if technique is not None:
        pipe.enable(technique)
    plain, twin = draw(pipe), copy.deepcopy(pipe)
    assert [applied.name for applied in twin.techniques] == [applied.name for applied in pipe.techniques]
    assert torch.equal(draw(twin), plain)
    twin.unet.conv_out.bias.data.add_(0.5)
    twin.scheduler = None
    assert torch.equal(draw(pipe), plain)


def test_from_pipe_of_the_base_class_picks_the_class(sd1: Any, sdxl: Any) -> None:
    for pipe in (sd1, sdxl):
        again = DiffusionPipeline.from_pipe(pipe)
        assert type(again) is type(pipe)
        assert again.unet is pipe.unet
