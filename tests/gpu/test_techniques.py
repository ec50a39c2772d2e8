"""Techniques on a CUDA device, with the packaged model in float16: parity, undo, what is left behind, memory."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leandiffusion import AutoencoderKL, ConfigError, StableDiffusionPipeline
from leandiffusion.attention import backends
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.families.base import families
from leandiffusion.modules.transformer import Attention
from leandiffusion.offload.engine import Engine
from leandiffusion.offload.policy import Policy
from leandiffusion.techniques import techniques
from leandiffusion.techniques.offloading import run_through

pytestmark = pytest.mark.gpu

# Pixels in [0, 1] after two steps in float16 (11 bits): other kernels round differently along the way.
HALF = 0.05
MOVING = ("sequential_offload", "model_offload")


def open_demo(**options: Any) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained("demo", dtype=torch.float16, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, **arguments: Any) -> np.ndarray:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    return pipe("a red circle", latents=latents, num_inference_steps=2, output_type="np", **arguments).images


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", techniques.names())
def test_parity_and_undo(name: str, device: torch.device) -> None:
    pipe = open_demo()
    if name not in MOVING:
        pipe.to(device)
    plain = draw(open_demo().to(device))
    technique = techniques.get(name)()
    if reasons := pipe.why_not(technique):
        pytest.skip("; ".join(reasons))
    pipe.enable(technique)
    first, second = draw(pipe), draw(pipe)
    assert np.abs(first - plain).max() < HALF
    assert np.abs(second - first).max() < HALF / 10
    pipe.disable(name)
    networks = pipe._stack.subject.networks.values()
    assert not any(m._forward_pre_hooks or m._forward_hooks for network in networks for m in network.modules())
    assert np.abs(draw(pipe.to(device)) - plain).max() < HALF / 10


@pytest.mark.filterwarnings("ignore:.*already lay on")
@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("together", ["attention_slicing", "vae_slicing", "vae_tiling", "channels_last"])
def test_travelling_weights_with_others(name: str, together: str, device: torch.device) -> None:
    """Strips and slices find their weights on the device, whatever calls them."""
    plain, pipe = draw(open_demo().to(device)), open_demo()
    pipe.enable(together)
    pipe.enable(name)
    assert np.abs(draw(pipe) - plain).max() < HALF


@pytest.mark.parametrize("name", MOVING)
def test_moved_off_the_gpu_first(name: str, device: torch.device) -> None:
    """`.to("cuda")` before offloading used to keep everything there."""
    pipe = open_demo().to(device)
    with pytest.warns(UserWarning, match="already lay on cuda"):
        pipe.enable(name)
    held = sum(p.nbytes for network in pipe._stack.subject.networks.values() for p in network.parameters() if p.is_cuda)
    assert held == 0
    with pytest.raises(ConfigError, match="decides where weights are"):
        pipe.to("cuda")
    assert pipe.device.type == "cuda"
    draw(pipe)
    pipe.disable(name)
    assert all(p.is_cuda for p in pipe.unet.parameters())


@pytest.mark.parametrize("name", MOVING)
def test_masters_stay_where_they_are(name: str) -> None:
    """Nothing is copied back: the same host memory, unchanged, before and after."""
    pipe = open_demo()
    pipe.enable(name)
    masters = {n: (p.data_ptr(), p.detach().cpu().clone()) for n, p in pipe.text_encoder.named_parameters()}
    draw(pipe)
    pipe.unet(torch.randn(2, 4, 8, 8).half(), 1, torch.randn(2, 24, pipe.unet.config.cross_attention_dim).half())
    for n, p in pipe.text_encoder.named_parameters():
        assert p.device.type == "cpu"
        assert p.data_ptr() == masters[n][0]
        assert torch.equal(p, masters[n][1])
    weight = pipe.text_encoder.text_model.embeddings.token_embedding.weight
    with torch.no_grad():
        weight[3] += 1  # and they can be touched
    assert np.isfinite(draw(pipe)).all()


@pytest.mark.parametrize("granularity", ["leaf", "block"])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_failure_in_mid_forward(granularity: str, fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = open_demo()
    pipe.enable("sequential_offload", granularity=granularity, resident_fraction=fraction)
    expected, seen, inner = draw(pipe), 0, torch.nn.functional.linear

    def fail(*args: Any) -> Tensor:
        nonlocal seen
        seen += 1
        if seen == 20:
            raise torch.cuda.OutOfMemoryError("made up")
        return inner(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            draw(pipe)
    assert np.array_equal(draw(pipe), expected)


def peak_of(offload: str | None, device: torch.device) -> int:
    """Peak bytes of one decode and encode of a full-size SD1 VAE whose weights lie as `offload` says."""
    part = families.get("sd1").networks["vae"]
    torch.manual_seed(0)
    vae: Any = AutoencoderKL.from_config(part.config).half().eval()
    vae.enable_tiling(rows=8)
    networks, undo = {"vae": vae}, None
    if offload is None:
        vae.to(device)
    else:
        undo = run_through(Engine(networks, Policy(device, offload)), device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.no_grad():
        vae.decode(torch.randn(1, 4, 4, 4, dtype=torch.float16, device=device))
    if undo is not None:
        undo()
    return torch.cuda.max_memory_allocated(device)


def test_the_order_of_peaks(device: torch.device) -> None:
    base = torch.cuda.memory_allocated(device)
    leaf, block, whole = (peak_of(kind, device) - base for kind in ("leaf", "block", None))
    assert leaf < block < whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", backends.names())
def test_kernels_against_float64(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Within the rounding of half precision: 11 or 8 bits of inputs, weights and result."""
    backend = backends.get(name)
    if reasons := backend.why_not(device, dtype):
        pytest.skip("; ".join(reasons))
    q, k, v = (torch.randn(2, 8, n, 40, dtype=dtype) for n in (256, 77, 77))
    exact = (q.double() @ k.double().transpose(-1, -2) * 40**-0.5).softmax(-1) @ v.double()
    found = backend(*(x.to(device) for x in (q, k, v))).cpu().double()
    torch.testing.assert_close(found, exact, atol=4e-3 if dtype == torch.float16 else 3e-2, rtol=0)


@pytest.mark.parametrize("name", backends.names())
def test_the_vaes_wide_head(name: str, device: torch.device) -> None:
    """512 channels: more than FlashAttention-2 takes. Within the rounding of half precision."""
    backend = backends.get(name)
    if reasons := backend.why_not(device, torch.float16):
        pytest.skip("; ".join(reasons))
    q, k, v = (torch.randn(1, 1, 256, 512, dtype=torch.float16) for _ in range(3))
    exact = (q.double() @ k.double().transpose(-1, -2) * 512**-0.5).softmax(-1) @ v.double()
    found = backend(*(x.to(device) for x in (q, k, v))).cpu().double()
    torch.testing.assert_close(found, exact, atol=4e-3, rtol=0)


@pytest.mark.parametrize("name", ["tf32", "attention_backend"])
def test_offloading_from_the_cpu_decides_what_is_chosen(name: str, device: torch.device) -> None:
    """What is chosen by the device is chosen for the GPU, though the weights lie in host memory at that moment."""
    for order in ((name, "model_offload"), ("model_offload", name)):
        pipe = StableDiffusionPipeline.from_pretrained("demo")  # float32, on the CPU
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for each in order:
                pipe.enable(each)
        if name == "tf32" and len(pipe.techniques) == 2:  # left out, with a warning, on CPUs without bfloat16
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        if name == "attention_backend":
            layer = next(m for m in pipe.unet.modules() if isinstance(m, Attention))
            assert layer.backend.why_not(device, torch.float32) == []
        draw(pipe)
        pipe.disable(name)


@pytest.mark.parametrize("name", ["sdpa", "flash", "efficient", "xformers", "chunked"])
def test_memory_is_linear_in_the_tokens(name: str, device: torch.device) -> None:
    backend = backends.get(name)
    if reasons := backend.why_not(device, torch.float16):
        pytest.skip("; ".join(reasons))
    peaks = []
    for tokens in (4096, 16384):
        q = torch.randn(2, 8, tokens, 40, dtype=torch.float16, device=device)
        k = q[:, :, :4096].contiguous()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        backend(q, k, k)
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    assert peaks[1] < 5 * peaks[0]


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(BackendUnavailable, match="cuda:99"):
        open_demo().enable_model_cpu_offload(gpu_id=99)


def test_memory_does_not_grow_from_call_to_call(device: torch.device) -> None:
    pipe = open_demo()
    pipe.enable_model_cpu_offload()
    for _ in range(3):
        draw(pipe)
    before = torch.cuda.memory_allocated(device)
    for _ in range(50):
        draw(pipe)
    assert torch.cuda.memory_allocated(device) <= before
