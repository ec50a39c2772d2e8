"""Half precision on CPUs without instructions for it: layers compute in float32 and round what comes out, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leandiffusion import StableDiffusionPipeline
from leandiffusion.attention.sdpa import fused_attention
from leandiffusion.device import capabilities
from leandiffusion.device.capabilities import HALF, is_widened
from leandiffusion.measure.work import allocated_bytes
from leandiffusion.modules import convolution, im2col
from leandiffusion.modules import linear as module
from leandiffusion.modules.convolution import Conv2d
from leandiffusion.modules.factors import LowRank
from leandiffusion.modules.linear import Linear, linear
from leandiffusion.modules.lora import put_on
from leandiffusion.plan.trace import trace


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "EMULATED", HALF)


def maps(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype, memory_format=torch.channels_last)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "linear": (lambda: Linear(40, 70), (2, 9, 40), {}),
    "linear without bias": (lambda: Linear(40, 70, bias=False), (3, 40), {}),
    "winograd": (lambda: Conv2d(96, 96), (2, 96, 24, 23), {}),
    "winograd, enlarged": (lambda: Conv2d(96, 96), (2, 96, 12, 13), {"double": True}),
    "im2col": (lambda: Conv2d(320, 288), (2, 320, 4, 5), {}),
    "one pixel": (lambda: Conv2d(40, 70, 1, padding=0), (2, 40, 6, 5), {}),
    "direct": (lambda: Conv2d(40, 70), (2, 40, 6, 5), {}),
    "direct, stride 2": (lambda: Conv2d(40, 70, stride=2), (2, 40, 6, 5), {}),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_a_layer_rounds_its_result_once(kind: str, dtype: torch.dtype) -> None:
    """Against torch's layer in float64 with the same weights: half a unit in the last place, and float32's rounding."""
    make, shape, options = LAYERS[kind]
    layer, x = make().to(dtype), torch.randn(shape).to(dtype)
    x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    weight, bias = layer.weight.double(), None if layer.bias is None else layer.bias.double()  # type: ignore[union-attr, operator]
    if isinstance(layer, Conv2d):
        large = F.interpolate(x.double(), scale_factor=2.0) if options else x.double()
        expected = F.conv2d(large, weight, bias, layer.stride, layer.padding)  # type: ignore[arg-type]
    else:
        expected = F.linear(x.double(), weight, bias)
    y = layer(x, **options)
    assert y.dtype == dtype
    unit = torch.finfo(dtype).eps / 2
    assert ((y.double() - expected).abs() <= 1.01 * unit * expected.abs() + 1e-5).all()


@pytest.mark.parametrize("inputs", [1, 800, 1 << 30])
@pytest.mark.parametrize("part", [1, 1120, 3000])
@pytest.mark.parametrize("outs", [24, 70])
@torch.no_grad()
def test_parts_make_up_the_whole(outs: int, part: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (torch.randn(*shape).to(torch.bfloat16) for shape in ((2, 11, 40), (outs, 40), (outs,)))
    wide = [F.linear(x.float(), weight.float(), shift) for shift in (bias.float(), None)]
    monkeypatch.setattr(module, "PART_BYTES", part)
    monkeypatch.setattr(module, "INPUT_BYTES", inputs)
    for shift, expected in zip((bias, None), wide, strict=True):
        assert ((linear(x, weight, shift).float() - expected).abs() <= 2**-8 * expected.abs() + 1e-5).all()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("part", [1, 4 * 9 * 40 * 30, 4 * 9 * 40 * 70])
@torch.no_grad()
def test_parts_make_up_the_whole_of_a_direct_convolution(
    part: int, with_bias: bool, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, x = Conv2d(40, 70, stride=2, bias=with_bias).to(torch.bfloat16), torch.randn(2, 40, 6, 5).to(torch.bfloat16)
    x = x.contiguous(memory_format=memory_format)
    expected = F.conv2d(x.float(), conv.weight.float(), conv.bias.float() if with_bias else None, 2, 1)  # type: ignore[union-attr]
    monkeypatch.setattr(convolution, "PART_BYTES", part)
    y = conv(x)
    assert y.is_contiguous(memory_format=memory_format)
    assert ((y.float() - expected).abs() <= 2**-8 * expected.abs() + 1e-5).all()


@pytest.mark.parametrize(("ins", "outs", "products"), [(960, 640, 0), (1920, 640, 1), (1280, 1280, 1)])
def test_never_is_a_large_weight_wide_as_a_whole(
    ins: int, outs: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By shapes: a part of it, and beside that as much in oneDNN's order or the pixels that are read."""
    calls: list[Any] = []
    convolve = im2col.convolve
    monkeypatch.setattr(im2col, "convolve", lambda *a, **k: calls.append(a) or convolve(*a, **k))
    conv = Conv2d(ins, outs).to("meta", torch.bfloat16)
    x = torch.empty(1, ins, 16, 16, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last)
    peak = trace(lambda: conv(x), on_host=True).peak
    maps = (4 + 2) * 256 * (ins + outs)
    assert len(calls) == products
    assert peak <= module.PART_BYTES + (4 * 256 * 9 * ins if products else module.PART_BYTES) + maps
    assert 4 * conv.weight.numel() > module.PART_BYTES


@torch.no_grad()
def test_what_is_allocated_for_a_direct_convolution_in_parts() -> None:
    """Of 21 MiB of weights a half at a time, wide and in oneDNN's order."""
    conv, x = Conv2d(960, 640).to(torch.bfloat16), maps(1, 960, 9, 16, dtype=torch.bfloat16)
    conv(x)
    assert allocated_bytes(lambda: conv(x)).peak <= 4 * conv.weight.numel() + (4 + 4) * 9 * 16 * (960 + 640)


def test_gradients_pass() -> None:
    layer = Linear(6, 4).to(torch.bfloat16)
    x = torch.randn(3, 6).to(torch.bfloat16).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, layer.weight.detach().sum(0).expand(3, -1)) or torch.allclose(
        x.grad.float(), layer.weight.detach().float().sum(0).expand(3, -1), atol=0.02
    )
    assert layer.weight.grad is not None


@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_one_graph_when_compiled(dtype: torch.dtype) -> None:
    torch.compiler.reset()
    for layer, x in ((Linear(8, 6), torch.randn(2, 8)), (Conv2d(8, 6), torch.randn(1, 8, 5, 5))):
        whole: Any = torch.compile(layer.to(dtype), backend="eager", fullgraph=True)
        assert (whole(x.to(dtype)) - layer(x.to(dtype))).abs().max() < 0.02


def test_what_computes_as_it_is() -> None:
    assert not is_widened(torch.ones(1))
    assert not is_widened(torch.ones(1, dtype=torch.float64))
    assert is_widened(torch.ones(1, dtype=torch.float16))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_widened(torch.ones(1, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_attention(dtype: torch.dtype) -> None:
    q, k, mask = torch.randn(1, 2, 5, 8).to(dtype), torch.randn(1, 2, 7, 8).to(dtype), torch.randn(5, 7).to(dtype)
    wide = F.scaled_dot_product_attention(q.float(), k.float(), k.float(), attn_mask=mask.float())
    y = fused_attention(q, k, k, attn_mask=mask)
    assert y.dtype == dtype
    assert (y.float() - wide).abs().max() < 4 * torch.finfo(dtype).eps


@torch.no_grad()
def test_lora_adds_in_float32() -> None:
    layer, x = Linear(32, 24).to(torch.bfloat16), torch.randn(4, 32).to(torch.bfloat16)
    factors = {"down": torch.randn(2, 32).to(torch.bfloat16), "up": torch.randn(24, 2).to(torch.bfloat16)}
    plain = layer(x).float()
    put_on(layer, [(LowRank(), factors, 0.5)])
    change = 0.5 * (x.float() @ factors["down"].float().T @ factors["up"].float().T)
    assert layer(x).dtype == torch.bfloat16
    assert (layer(x).float() - plain - change).abs().max() <= 2**-7 * (plain + change).abs().max()


def test_a_picture_in_half_precision() -> None:
    """Against float32, of the same noise: closer than bfloat16's 8 bits let a few steps be apart."""
    pictures = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        pipe = StableDiffusionPipeline.from_pretrained("demo", dtype=dtype)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        drawn: Any = pipe("a red circle", num_inference_steps=3, latents=noise, height=128, width=128, output_type="np")
        pictures.append(drawn.images[0])
    assert abs(pictures[1] - pictures[0]).max() < 0.02
    assert abs(pictures[2] - pictures[0]).max() < 0.2
