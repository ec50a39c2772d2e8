"""Whole pipelines, schedulers and techniques on a GPU that only pretends: no tensor is on the wrong device.

What torch itself makes of a graph is not here: torch.jit's optimisations and torch.compile's own backend need numbers
or a compiler for the device. Nor is opening, whose files have numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.device import fake_graphs
from tests.unit.device.fake import GPU, fake_gpu, without_numbers
from tests.unit.pipelines.conftest import NOISE, make_sd1, make_sdxl, quiet, unet
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError, FakeTensorMode

from leandiffusion.modules import blocks
from leandiffusion.schedulers import build, schedulers
from leandiffusion.techniques import techniques

pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),  # schedules are ones, too
    pytest.mark.filterwarnings("ignore:xFormers is not installed"),
]

CPU = torch.device("cpu")
OFFLOADS = ("model_offload", "sequential_offload")
GRAPHS = ("compile", "traced_unet")
FOR_CPUS = ("int8", "openvino", "packed_weights")
FOR_GPUS = [name for name in techniques if name not in FOR_CPUS]
SETTINGS = {"compile": {"backend": fake_graphs.keep}}


def make_sd2() -> Any:
    scheduler = build("ddim", {**NOISE, "prediction_type": "v_prediction"})
    return make_sd1(unet=unet(use_linear_projection=True, attention_head_dim=(2, 4)), scheduler=scheduler)


FAMILIES: dict[str, Callable[[], Any]] = {"sd1": make_sd1, "sd2": make_sd2, "sdxl": make_sdxl}


@pytest.fixture
def gpu() -> Iterator[Callable[..., Any]]:
    """Begins the fake and puts a pipeline's networks onto it, or beside it; the pipeline was made with numbers."""
    with ExitStack() as fake, torch.no_grad():

        def put(pipe: Any, device: torch.device = GPU) -> Any:
            fake.enter_context(fake_gpu())
            for network in pipe.components.values():
                if isinstance(network, nn.Module):
                    without_numbers(network, device)
            return pipe

        yield put


def draw(pipe: Any, **arguments: Any) -> Any:
    return pipe(**{"prompt": "a red circle", "num_inference_steps": 2} | arguments).images


@pytest.fixture(params=sorted(FAMILIES))
def pipe(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pipeline_computes_on_its_device(pipe: Any, gpu: Callable[..., Any], dtype: torch.dtype) -> None:
    for network in (pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if network is not None:
            network.to(dtype)
    gpu(pipe, CPU).to("cuda")
    assert pipe.device == GPU
    assert draw(pipe, output_type="latent", generator=torch.Generator().manual_seed(0)).device == GPU
    assert draw(pipe, output_type="pt").device == GPU
    assert draw(pipe)[0].size == (64, 64)  # on the CPU at last


def test_what_is_passed_may_lie_on_the_cpu(gpu: Callable[..., Any]) -> None:
    pipe = gpu(make_sd1())
    latents, embeds = torch.zeros(1, 4, 8, 8), torch.zeros(1, 16, 32)
    seen: list[torch.device] = []

    def callback(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].device)
        return {"latents": tensors["latents"] * 1}

    given = {"prompt": None, "latents": latents, "prompt_embeds": embeds, "negative_prompt_embeds": embeds}
    assert draw(pipe, output_type="latent", callback_on_step_end=callback, **given).device == GPU
    assert seen == [GPU, GPU]


@pytest.mark.parametrize("name", schedulers.names())
def test_every_scheduler_steps_on_the_device(name: str, gpu: Callable[..., Any]) -> None:
    assert draw(gpu(make_sd1(scheduler=build(name, NOISE))), output_type="latent", num_inference_steps=4).device == GPU


@pytest.fixture
def switched(gpu: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Puts a pipeline onto the fake device, or beside it, and the technique of that name on."""

    def switch(pipe: Any, name: str) -> Any:
        if name == "half_precision":  # reads the checkpoint again
            pipe.save_pretrained(tmp_path)
            pipe = quiet(type(pipe).from_pretrained(tmp_path))
            draw(pipe, num_inference_steps=1)  # whose weights are read when they are first needed
        gpu(pipe, CPU if name in OFFLOADS else GPU)
        technique = techniques.get(name)(**SETTINGS.get(name, {}))
        assert pipe.why_not(technique) == []
        pipe.enable(technique)
        return pipe

    return switch


@pytest.mark.parametrize("name", FOR_CPUS)
def test_what_is_for_cpus_says_so(name: str, gpu: Callable[..., Any]) -> None:
    assert any("CPU" in reason for reason in gpu(make_sd1()).why_not(name))


@pytest.mark.parametrize("name", FOR_GPUS)
def test_a_technique_leaves_tensors_where_they_meet(name: str, pipe: Any, switched: Callable[..., Any]) -> None:
    """Seconds each: every operation is an operation of Python's here, and some techniques record graphs of them."""
    pipe = switched(pipe, name)
    assert draw(pipe, output_type="pt", num_inference_steps=1).device == GPU
    assert bool(fake_graphs.recorded) == (name in GRAPHS)
    pipe.disable(name)
    home = CPU if name in OFFLOADS else GPU
    assert {p.device for p in pipe.unet.parameters()} == {home}
    assert draw(pipe, output_type="pt", num_inference_steps=1).device == home


@pytest.mark.parametrize("name", FOR_GPUS)
def test_a_tensor_made_on_the_wrong_device_is_found(
    name: str, switched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each technique, in the recorded graphs of those that record some."""
    monkeypatch.setattr(blocks, "add", lambda x, y, maker: x + y + torch.ones(1))
    pipe = switched(make_sd1(), name)
    with pytest.raises((FakeTensorDeviceMismatchError, RuntimeError), match="device"):
        draw(pipe, num_inference_steps=1)


@pytest.mark.parametrize("place", ["unet.conv_in", "vae.decoder.conv_out", "text_encoder.text_model.final_layer_norm"])
def test_a_tensor_on_the_wrong_device_is_found(place: str, gpu: Callable[..., Any]) -> None:
    pipe = gpu(make_sd1())
    component, _, path = place.partition(".")
    without_numbers(getattr(pipe, component).get_submodule(path), CPU)
    with pytest.raises((FakeTensorDeviceMismatchError, RuntimeError), match="device"):
        draw(pipe)


def test_the_fake_is_torchs_own() -> None:
    with fake_gpu() as mode:
        assert isinstance(mode, FakeTensorMode)
        with pytest.raises(FakeTensorDeviceMismatchError):
            torch.ones(2) + torch.ones(2, device=GPU)
