"""Convolutions by Winograd's algorithm and by im2col, against torch's in float64, and which ones are computed so."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leandiffusion.device import capabilities
from leandiffusion.measure.work import allocated_bytes
from leandiffusion.modules import convolution, im2col, winograd
from leandiffusion.modules.blocks import Upsample2D
from leandiffusion.modules.convolution import Conv2d
from leandiffusion.techniques.hooks import set_global

# Relative to the largest value. Sums of C * 36 products of numbers near 1, each rounded at 6e-8.
ROUNDING = 1e-5

CHANNELS = convolution.FEWEST_CHANNELS


def tensors(C: int = 5, channels: int = 7, B: int = 1, H: int = 8, W: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, C, H, W), torch.randn(channels, C, 3, 3) / (9 * C) ** 0.5, torch.randn(channels)


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, *, double: bool = False) -> Tensor:
    x = F.interpolate(x, scale_factor=2.0, mode="nearest") if double else x
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)


def error(y: Tensor, reference: Tensor) -> float:
    assert y.shape == reference.shape
    return float((y - reference).abs().max() / reference.abs().max())


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 3), C=st.integers(1, 9), channels=st.integers(1, 9), H=st.integers(1, 18), W=st.integers(1, 18),
    double=st.booleans(), with_bias=st.booleans(), last=st.booleans(), tiles=st.sampled_from([1, 3, 256]),
    part=st.sampled_from([1, 2000, 1 << 24]), kept=st.sampled_from([0, 1 << 26]),
)  # fmt: skip
def test_any_size_in_any_parts(
    B: int, C: int, channels: int, H: int, W: int, double: bool, with_bias: bool, last: bool, tiles: int, part: int,
    kept: int,
) -> None:  # fmt: skip
    x, weight, bias = tensors(C, channels, B, H, W)
    if last:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    given_bias = bias if with_bias else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "MOST_TILES", tiles)
        patch.setattr(winograd, "FEWEST_TILES", 1)
        patch.setattr(winograd, "PART_BYTES", part)
        patch.setattr(winograd, "KEPT_BYTES", kept)
        y = winograd.convolve(x, weight, given_bias, double=double)
    assert error(y, expected(x, weight, given_bias, double=double)) < ROUNDING


def test_is_as_accurate_as_the_direct_convolution() -> None:
    """The points are chosen for this: with 0, +-1, +-2 the error would be three times the direct one's."""
    x, weight, bias = tensors(320, 64, H=32, W=32)
    reference = expected(x, weight, bias)
    ours = (winograd.convolve(x, weight, bias) - reference).norm() / reference.norm()
    direct = (F.conv2d(x, weight, bias, padding=1) - reference).norm() / reference.norm()
    assert ours < 2 * direct or ours < 1e-6  # a direct one that adds in blocks may be better than both


@pytest.mark.skipif(not capabilities.onednn_computes(torch.float32), reason="needs oneDNN")
@pytest.mark.parametrize("kept", [0, 1 << 26])
@torch.no_grad()
def test_either_library_multiplies(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = tensors(40, 70, B=2, H=17, W=22)
    monkeypatch.setattr(winograd, "PART_BYTES", 18 * 4 * 40 * 32)
    monkeypatch.setattr(winograd, "TILES_BYTES", 1 << 20)
    monkeypatch.setattr(winograd, "FEWEST_TILES", 12)
    monkeypatch.setattr(winograd, "KEPT_BYTES", kept)
    for onednn in (True, False):
        monkeypatch.setattr(winograd, "is_for_onednn", lambda v, u, onednn=onednn: onednn)
        assert error(winograd.convolve(x, weight, bias), expected(x, weight, bias)) < ROUNDING


def test_tall_maps_take_no_more_than_others_beside_their_result() -> None:
    """Tiles of the next rows take the place of those before."""

    def beside(height: int) -> int:
        x, weight, bias = tensors(16, 16, H=height, W=256)
        winograd.convolve(x, weight, bias)
        return allocated_bytes(lambda: winograd.convolve(x, weight, bias)).peak - x.nbytes

    assert beside(256) == beside(512)


def test_a_border_holds_nothing_but_zeros() -> None:
    """A picture of ones under a filter of ones counts how many of the nine pixels are inside."""
    y = winograd.convolve(torch.ones(1, 1, 5, 6), torch.ones(1, 1, 3, 3), None)[0, 0]
    counts = torch.tensor([2.0, 3, 3, 3, 2])[:, None] * torch.tensor([2.0, 3, 3, 3, 3, 2])
    assert torch.allclose(y, counts, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 3), C=st.integers(1, 9), channels=st.integers(1, 9), H=st.integers(1, 9), W=st.integers(1, 9),
    stride=st.integers(1, 3), with_bias=st.booleans(), maps_last=st.booleans(), weights_last=st.booleans(),
)  # fmt: skip
def test_im2col_of_any_size(
    B: int, C: int, channels: int, H: int, W: int, stride: int, with_bias: bool, maps_last: bool, weights_last: bool
) -> None:
    x, weight, bias = tensors(C, channels, B, H, W)
    x = x.contiguous(memory_format=torch.channels_last) if maps_last else x
    weight = weight.contiguous(memory_format=torch.channels_last) if weights_last else weight
    reference = F.conv2d(x.double(), weight.double(), bias.double() if with_bias else None, stride=stride, padding=1)
    y = im2col.convolve(x, weight, bias if with_bias else None, stride=stride)
    assert error(y, reference) < ROUNDING
    assert im2col.outputs_of(x, stride=stride) == y.numel() // channels


# -- which ones ------------------------------------------------------------------------------------------------------


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Inputs that were convolved by Winograd's algorithm, on a machine where it pays."""
    calls: list[Any] = []
    convolve = winograd.convolve

    def noted(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        calls.append(x)
        return convolve(x, *rest, **named)

    monkeypatch.setattr(convolution, "pays", lambda: True)
    monkeypatch.setattr(winograd, "convolve", noted)
    return calls


def layer(dtype: torch.dtype = torch.float32, channels: int = CHANNELS) -> Conv2d:
    torch.manual_seed(0)
    return Conv2d(channels, channels).to(dtype).requires_grad_(False)


def picture(dtype: torch.dtype = torch.float32, side: int = 32, channels: int = CHANNELS) -> Tensor:
    return torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


@torch.no_grad()
def test_large_float32_maps_on_a_cpu(used: list[Any]) -> None:
    conv, x = layer(), picture()
    assert error(conv(x), expected(x, conv.weight, conv.bias)) < ROUNDING
    assert len(used) == 1


@pytest.mark.parametrize(
    ("ins", "outs", "side", "packs", "winograds"),
    [
        (640, 640, 32, True, 1),  # many channels
        (320, 320, 32, True, 0),  # fewer
        (320, 320, 64, True, 1),  # for many tiles
        (128, 128, 128, True, 0),  # for any number of tiles
        (320, 320, 32, False, 1),  # whose direct convolution has to reorder weights
    ],
)
@torch.no_grad()
def test_where_direct_ones_are_as_fast_as_products_it_is_for_fewer(
    ins: int, outs: int, side: int, packs: bool, winograds: int, used: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not capabilities.onednn_computes(torch.float32):
        pytest.skip("needs oneDNN")
    conv, x = Conv2d(ins, outs).requires_grad_(False), torch.randn(2, ins, side, side)
    conv.packs = packs
    monkeypatch.setattr(convolution, "onednn_multiplies_faster", lambda: True)
    reference = F.conv2d(x, conv.weight, conv.bias, padding=1)
    assert error(conv(x), reference) < ROUNDING
    assert len(used) == winograds


@torch.no_grad()
def test_upsampling_makes_no_enlarged_map(used: list[Any]) -> None:
    up, x = Upsample2D(CHANNELS).requires_grad_(False), picture(side=16)
    assert error(up(x), expected(x, up.conv.weight, up.conv.bias, double=True)) < ROUNDING
    assert used[0] is x


@pytest.mark.parametrize(
    ("what", "products"),
    [
        ("small", 1),
        ("three pictures", 0),
        ("a large weight", 1),
        ("stride 2", 1),
        ("half", 0),
        ("half made wide", 1),
        ("packed", 0),
        ("1x1", 0),
        ("a small weight", 0),
    ],
)
@torch.no_grad()
def test_small_float32_maps_with_plain_weights_are_one_product(
    what: str, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    convolve = im2col.convolve
    monkeypatch.setattr(im2col, "convolve", lambda *a, **k: calls.append(a) or convolve(*a, **k))
    monkeypatch.setattr(capabilities, "EMULATED", capabilities.HALF if what == "half made wide" else ())
    dtype = torch.bfloat16 if what.startswith("half") else torch.float32
    conv, x = layer(dtype, 320), picture(dtype, side=8, channels=320)
    if what in ("three pictures", "a large weight"):
        x = x.repeat(3, 1, 1, 1)
    if what == "a large weight":
        monkeypatch.setattr(convolution, "LARGE_WEIGHT", conv.weight.nbytes)
    if what == "stride 2":
        conv.stride, x = (2, 2), picture(side=22, channels=320)
    if what == "packed":
        conv.packs = True
    if what == "a small weight":
        conv, x = layer(), picture(side=8)
    if what == "1x1":
        conv = Conv2d(320, 320, 1, padding=0).requires_grad_(False)
    weight = conv.weight.detach().clone()
    reference = F.conv2d(x.double(), weight.double(), conv.bias.double(), stride=conv.stride, padding=conv.padding)
    assert error(conv(x), reference) < (ROUNDING if dtype == torch.float32 else 2**-7)
    assert len(calls) == products


@torch.no_grad()
def test_upsampling_with_a_convolution_of_the_users_own() -> None:
    up, x = Upsample2D(CHANNELS).requires_grad_(False), picture(side=16)
    up.conv = nn.Conv2d(CHANNELS, 3, 1).requires_grad_(False)
    assert up(x).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "what",
    ["half", "few channels", "small map", "another stride", "fewer bits", "autocast"],
)
@torch.no_grad()
def test_others_are_torchs_own(what: str, used: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = layer(), picture()
    if what == "half":  # on a CPU with instructions for it
        monkeypatch.setattr(capabilities, "EMULATED", ())
        conv, x = layer(torch.bfloat16), picture(torch.bfloat16)
    if what == "few channels":
        conv, x = layer(channels=8), picture(channels=8)
    if what == "small map":
        x = picture(side=16)
    if what == "another stride":
        conv.stride = (2, 2)
    bits: Any = torch.backends.mkldnn.conv
    undo = set_global(bits, "fp32_precision", "bf16" if what == "fewer bits" else bits.fp32_precision)
    direct = F.conv2d(x, conv.weight, conv.bias, stride=conv.stride, padding=1)
    with torch.autocast("cpu", enabled=what == "autocast", dtype=torch.bfloat16):
        y = conv(x)
    undo()
    assert not used
    if what not in ("fewer bits", "autocast"):
        assert torch.equal(y, direct)


def test_gradients_are_torchs_own(used: list[Any]) -> None:
    conv, x = layer(), picture().requires_grad_()
    conv(x).sum().backward()
    assert not used
    assert x.grad is not None


@torch.no_grad()
def test_a_trace_and_a_compiled_graph_record_the_convolution(used: list[Any]) -> None:
    conv, x = layer(), picture()
    with pytest.warns(DeprecationWarning, match="jit"):
        traced = torch.jit.trace(conv, x, check_trace=False)
    assert "_convolution" in str(traced.graph)
    torch.compile(conv, backend="eager")(x)
    assert not used


@pytest.mark.parametrize(
    ("machine", "threads", "expected"),
    [("x86_64", 2, True), ("AMD64", 16, True), ("x86_64", 17, False), ("arm64", 2, False), ("aarch64", 2, False)],
)
@torch.no_grad()
def test_where_it_pays(machine: str, threads: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert convolution.pays() is expected


@torch.no_grad()
def test_where_it_does_not_pay_torchs_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "pays", lambda: False)
    conv, x = layer(), picture()
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
