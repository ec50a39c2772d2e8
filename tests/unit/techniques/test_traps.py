"""Traps that users of other tools fell into, one test each.

Some are covered where the thing itself is tested:

| trap | test |
|---|---|
| 6 streams pin a second copy of every weight | unit/offload/test_engine.py: test_no_more_is_pinned… |
| 8 compile and model offload crash on the second image | contract/test_pairs.py (refused by name) |
| 9 SDXL's VAE overflows float16 into black pictures | unit/pipelines/test_decoding.py |
| 14 single files go online, or load float32 first | parity/test_single_file.py, unit/weights/test_memory.py |
| 15 importing takes seconds and hundreds of megabytes | unit/test_imports.py |
| 16 schedulers wait for the device at every step | unit/schedulers/test_samplers.py |
| 17 two calls share a scheduler's state | unit/pipelines/test_calls.py, contract: test_two_threads |
| 18 a failed call leaves hooks half installed | contract/test_one_technique.py::test_a_failure_in_mid_forward |

Devices other than the CPU: gpu/test_techniques.py.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.plan.profiles import a_profile
from torch import nn

from leandiffusion import ConfigError, StableDiffusionPipeline, UNet2DConditionModel
from leandiffusion.attention import backends
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.demo import model_folder
from leandiffusion.families.base import families
from leandiffusion.modules.transformer import attention_layers
from leandiffusion.plan.predict import Predictor
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.run.size import CallSize
from leandiffusion.techniques.model_offload import ModelOffload
from leandiffusion.techniques.offloading import opening_offload
from leandiffusion.techniques.sequential_offload import SequentialOffload
from leandiffusion.techniques.stack import make
from leandiffusion.weights.build import build_empty


@pytest.fixture
def pipe() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, **arguments: Any) -> np.ndarray:
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "height": 64, "width": 64} | arguments
    return pipe("a red circle", generator=torch.Generator().manual_seed(3), **options).images


def test_trap_01_slicing_keeps_the_fast_kernel(pipe: Any) -> None:
    """Slicing used to swap SDPA or xFormers for a slow kernel of its own."""
    pipe.set_attention_backend("flash")
    pipe.enable_attention_slicing("max")
    for network in (pipe.unet, pipe.vae):
        assert all(layer.backend.inner is backends.get("flash") for _, layer in attention_layers(network))
    pipe.set_attention_backend("chunked")  # and one that is chosen later is the one that is sliced
    assert all(layer.backend.inner is backends.get("chunked") for _, layer in attention_layers(pipe.unet))
    pipe.disable_attention_slicing()
    assert all(layer.backend is backends.get("chunked") for _, layer in attention_layers(pipe.unet))


def test_trap_02_an_explicit_gpu_is_not_ignored(pipe: Any) -> None:
    """`gpu_id=0` used to be taken for 'not given'."""
    missing = torch.cuda.device_count()
    with pytest.raises(BackendUnavailable, match=f"cuda:{missing}"):
        pipe.enable_sequential_cpu_offload(gpu_id=missing)
    with pytest.raises(ConfigError, match="name two devices"):
        pipe.enable_model_cpu_offload(gpu_id=0, device="cpu")
    for wrong in (-1, "0", True):
        with pytest.raises(ConfigError, match=f"gpu_id={wrong!r} is not the number of a GPU"):
            pipe.enable_sequential_cpu_offload(wrong)
    with pytest.raises(ConfigError, match="device='gpu' is not a device"):
        pipe.enable_model_cpu_offload(device="gpu")
    assert pipe.techniques == ()


def test_a_device_named_when_opening_is_that_of_the_offload() -> None:
    """It was dropped where offloading was given as a technique, which then chose a device itself."""
    elsewhere = torch.device("cuda:7")
    travel, resident = opening_offload(SequentialOffload(slots=3), elsewhere)
    assert travel == SequentialOffload(device=elsewhere, slots=3)
    assert resident is None
    assert opening_offload(ModelOffload(device="cpu"), elsewhere)[0] == ModelOffload(device="cpu")


def test_trap_03_weights_can_be_touched_outside_a_forward(pipe: Any) -> None:
    """Reading or writing an embedding under sequential offload used to end in meta-tensor errors."""
    table = pipe.text_encoder.text_model.embeddings.token_embedding.weight.detach().clone()
    pipe.enable_sequential_cpu_offload()
    weight = pipe.text_encoder.text_model.embeddings.token_embedding.weight
    assert torch.equal(weight[5], table[5])
    assert torch.equal(
        pipe.unet.conv_in.weight.sum(), StableDiffusionPipeline.from_pretrained("demo").unet.conv_in.weight.sum()
    )
    before = draw(pipe)
    with torch.no_grad():
        weight[:] = weight.flip(0)  # textual inversion writes so
    assert not np.array_equal(draw(pipe), before)
    embeddings, negative = pipe.encode_prompt("a blue star", num_images_per_prompt=1)
    weighted = pipe(
        prompt_embeds=embeddings * 1.1, negative_prompt_embeds=negative, num_inference_steps=1, output_type="np"
    )
    assert np.isfinite(weighted.images).all()
    pipe.disable("sequential_offload")
    assert torch.equal(pipe.text_encoder.text_model.embeddings.token_embedding.weight, table.flip(0))


@pytest.mark.parametrize(
    "settings",
    [
        {"technique": "model_offload"},
        {"technique": "sequential_offload"},
        {"technique": "sequential_offload", "resident_fraction": 1.0},
    ],
    ids=["model", "sequential", "resident"],
)
def test_trap_03_what_is_written_between_calls_stays(pipe: Any, settings: dict[str, Any]) -> None:
    """Copies on the device, of the layer that ran last and of those read ahead, used to take the writes with them."""
    plain: Any = StableDiffusionPipeline.from_pretrained("demo")
    plain.set_progress_bar_config(disable=True)
    pipe.enable(**settings)
    draw(pipe)
    for each in (pipe, plain):
        with torch.no_grad():
            each.vae.decoder.conv_out.weight.mul_(0.5)
            for network in (each.text_encoder, each.unet):
                for layer in network.modules():
                    if isinstance(layer, nn.Linear):
                        layer.weight.data += 0.002  # as scripts that merge a LoRA do
    expected = draw(plain)
    assert np.array_equal(draw(pipe), expected)
    assert np.array_equal(draw(pipe), expected)
    pipe.disable(settings["technique"])
    assert np.array_equal(draw(pipe), expected)


@pytest.mark.parametrize("call", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_trap_04_memory_does_not_grow_from_call_to_call(pipe: Any, call: str) -> None:
    """Model offload used to leave something behind at every call."""
    getattr(pipe, call)()

    def alive() -> tuple[int, int]:
        gc.collect()
        found = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
        tensors = [tensor for tensor in found if tensor.layout == torch.strided]  # oneDNN's own do not tell their bytes
        return len(tensors), sum(thing.untyped_storage().nbytes() for thing in tensors)

    for _ in range(3):
        draw(pipe)
    before = alive()
    for _ in range(20):
        draw(pipe)
    assert alive() == before


def test_trap_05_weights_are_never_copied_back(pipe: Any) -> None:
    """Unchanged weights used to travel back down after every layer; here nobody opens the masters for writing."""
    files = sorted(Path(model_folder()).rglob("*.safetensors"))
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    pipe.enable_sequential_cpu_offload()
    masters = [id(p) for p in pipe.unet.parameters()]
    draw(pipe)
    assert [hashlib.sha256(file.read_bytes()).digest() for file in files] == digests
    moved = [i for i, p in zip(masters, pipe.unet.parameters(), strict=True) if id(p) != i]
    assert len(moved) <= 4  # the one unit that is still in place, if any, shows copies; all others their masters


def test_trap_07_offload_and_tiling_together(pipe: Any) -> None:
    """Group offload used to leave the strips' weights on another device; every weight comes by calling its layer."""
    expected = draw(pipe)
    pipe.enable_sequential_cpu_offload()
    pipe.enable_vae_tiling(rows=16)
    pipe.enable_vae_slicing()
    np.testing.assert_allclose(draw(pipe), expected, atol=2e-4)


@pytest.mark.parametrize("rows", [None, 8, 24])
def test_trap_10_tiling_shows_no_seams_and_keeps_colours(pipe: Any, rows: int | None) -> None:
    """Blended tiles show borders, shift colours, and do nothing up to the model's own size."""
    expected = draw(pipe, height=128, width=128)
    pipe.enable_vae_tiling(rows)
    calls: list[int] = []
    pipe.vae.decoder.conv_out.register_forward_hook(lambda m, args, out: calls.append(out.shape[2]))
    picture = draw(pipe, height=128, width=128)
    assert np.abs(picture - expected).max() < 2e-4  # no pixel at a border either
    assert np.abs(picture.mean((0, 1, 2)) - expected.mean((0, 1, 2))).max() < 1e-5
    assert rows is None or len(calls) > 1


def test_trap_11_the_decode_that_sets_the_peak_is_seen(pipe: Any) -> None:
    """The VAE's decode, not the UNet, needs most at large sizes: the prediction says so, and what helps."""
    blueprint = Blueprint.of_networks("demo", pipe._stack.subject.networks, pipe.device)
    predictor = Predictor(blueprint, CallSize(1024, 1024), 1, a_profile(floor=0))
    plain = predictor.predict(())
    assert plain.worst == "decode"
    assert predictor.predict((make("vae_tiling", {}),)).peak < 0.7 * plain.peak


def test_trap_12_channels_last_reaches_every_convolution(pipe: Any) -> None:
    """Blocks that reorder to NCHW on the way make the layout worthless."""
    pipe.enable_channels_last()
    wrong: list[str] = []

    def look(name: str, module: nn.Module, args: Any) -> None:
        if args[0].shape[1] > 1 and not args[0].is_contiguous(memory_format=torch.channels_last):
            wrong.append(name)

    for network in (pipe.unet, pipe.vae.decoder):
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d) and name != "conv_in":  # latents come from the scheduler as they are
                module.register_forward_pre_hook(functools.partial(look, name))
    draw(pipe)
    assert wrong == []


def test_trap_12_the_documented_strides() -> None:
    """What diffusers' documentation prints for SD1.5's `unet.conv_out`."""
    part = families.get("sd1").networks["unet"]
    unet = build_empty(lambda: UNet2DConditionModel.from_config(part.config))
    assert unet.conv_out.weight.stride() == (2880, 9, 3, 1)
    unet.to(memory_format=torch.channels_last)
    assert unet.conv_out.weight.stride() == (2880, 1, 960, 320)


@dataclass
class Output:
    sample: torch.Tensor


class Traced(nn.Module):
    """What the documented example puts in the UNet's place."""

    def __init__(self, graph: Any) -> None:
        super().__init__()
        self.graph = graph
        self.in_channels = 4
        self.device = torch.device("cpu")

    def forward(self, latent_model_input: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Output:
        return Output(self.graph(latent_model_input, t, encoder_hidden_states)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_trap_13_the_documented_trace_works(pipe: Any, tmp_path: Path) -> None:
    """Tracing by hand as diffusers documents it, through a file; and `pipe.dtype` survives the exchange."""
    expected = draw(pipe)
    unet = pipe.unet.eval()
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor(1), torch.randn(2, 24, unet.config.cross_attention_dim))
    unet.forward = functools.partial(unet.forward, return_dict=False)
    with torch.no_grad():
        graph = torch.jit.trace(unet, inputs)
        graph.save(str(tmp_path / "unet_traced.pt"))
        loaded = torch.jit.load(str(tmp_path / "unet_traced.pt"))
        assert torch.allclose(loaded(*inputs)[0], unet(*inputs)[0], atol=1e-4)
    pipe.unet = Traced(loaded)
    assert pipe.dtype == torch.float32
    assert pipe.device.type == "cpu"
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)
    for name in ("channels_last", "vae_tiling", "sequential_offload"):  # go on with the rest of the networks
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* are not in a checkpoint as they are in memory")
            pipe.enable(name)
        np.testing.assert_allclose(draw(pipe), expected, atol=2e-4)
        pipe.disable(name)


@pytest.mark.parametrize("offload", ["sequential_offload", "model_offload"])
def test_a_network_compiled_by_hand_does_not_travel(offload: str) -> None:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    pipe.enable(offload)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with pytest.warns(UserWarning, match=f"{offload} is switched off: unet was compiled"):
        pipe("a red circle", num_inference_steps=1, height=64, width=64)
    assert not pipe.techniques
    with pytest.raises(BackendUnavailable, match=r"was compiled by torch\.compile"):
        pipe.enable(offload)
    pipe.unet = pipe.unet._orig_mod
    pipe.enable(offload)
    pipe("a red circle", num_inference_steps=1, height=64, width=64)
