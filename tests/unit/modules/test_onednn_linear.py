"""Products that oneDNN computes by its own operation: as exact as torch's, and only where nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leandiffusion.device.capabilities import EMULATED, fewer_bits, onednn_computes
from leandiffusion.modules import linear as module
from leandiffusion.modules.linear import Linear, is_for_onednn, linear
from leandiffusion.modules.transformer import GEGLU
from leandiffusion.offload.parts import computed_in_parts
from leandiffusion.plan.trace import trace
from leandiffusion.techniques.hooks import around_forward

pytestmark = pytest.mark.skipif(not onednn_computes(torch.float32), reason="torch was built without oneDNN")

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}
"""Relative to the largest value: sums of 300 products in any order; one rounding of the result."""


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onednn_multiplies_faster", lambda: True)


def inputs(*shape: int, dtype: torch.dtype = torch.float32, outs: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(*shape).to(dtype), torch.randn(outs, shape[-1]).to(dtype), torch.randn(outs).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(300,), (1, 300), (7, 300), (2, 5, 300), (2, 0, 300)])
@torch.no_grad()
def test_against_float64(shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype) -> None:
    if dtype in EMULATED:
        pytest.skip("no instructions for it")
    x, weight, bias = inputs(*shape, dtype=dtype)
    shift = bias if with_bias else None
    y = linear(x, weight, shift)
    expected = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    assert torch.allclose(
        y.double(), expected, rtol=0, atol=ROUNDING[dtype] * float(expected.abs().amax() if y.numel() else 1)
    )


@torch.no_grad()
def test_inputs_and_weights_that_lie_apart() -> None:
    x, weight, bias = inputs(6, 300)
    expected = linear(x, weight, bias)
    apart = torch.randn(300, 6).t().copy_(x), torch.randn(300, 50).t().copy_(weight)
    assert torch.allclose(linear(*apart, bias), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_half_precision_is_what_torch_gives() -> None:
    if torch.bfloat16 in EMULATED:
        pytest.skip("no instructions for it")
    x, weight, bias = inputs(2, 9, 300, dtype=torch.bfloat16)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@torch.no_grad()
def test_a_bias_whose_numbers_lie_apart() -> None:
    """oneDNN would read what lies between them, or beyond them."""
    x, weight, bias = inputs(6, 300)
    expected = linear(x, weight, bias)
    apart = torch.full((100,), 1e6)[::2].copy_(bias)
    assert torch.allclose(linear(x, weight, apart), expected, rtol=0, atol=1e-4)
    one = torch.ones(1)
    assert torch.allclose(linear(x, weight, one.expand(50)), linear(x, weight) + 1, rtol=0, atol=1e-4)
    layer = GEGLU(300, 25).requires_grad_(False)
    layer.proj.bias.copy_(bias)
    gate = layer(x)
    layer.proj.bias.data = apart
    assert torch.allclose(layer(x), gate, rtol=0, atol=1e-4)


@torch.no_grad()
def test_what_does_not_fit_is_refused_in_torchs_words() -> None:
    x, weight, bias = inputs(6, 300)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        linear(x[:, :299], weight, bias)
    with pytest.raises(RuntimeError, match="must match the existing size"):
        linear(x, weight, bias[:49])
    with pytest.raises(RuntimeError, match="same dtype"):
        linear(x, weight, bias.double())


@contextmanager
def as_tf32() -> Iterator[None]:
    owner = fewer_bits(torch.device("cpu"))[0][0]
    before, owner.fp32_precision = owner.fp32_precision, "bf16"
    try:
        yield
    finally:
        owner.fp32_precision = before


def test_where_it_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = inputs(3, 300)
    assert not is_for_onednn(x, weight)  # gradients may be asked for
    with torch.no_grad():
        assert is_for_onednn(x, weight)
        assert not is_for_onednn(x, weight.double())
        assert not is_for_onednn(x.double(), weight.double())
        assert not is_for_onednn(x[0], weight)
        assert not is_for_onednn(x, weight.t().contiguous().t())
        with as_tf32():
            assert not is_for_onednn(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_for_onednn(x, weight)
        monkeypatch.setattr(module, "onednn_multiplies_faster", lambda: False)
        assert not is_for_onednn(x, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_gate_rounds_less_than_its_parts_do(dtype: torch.dtype) -> None:
    """Against float64. In parts the double width, GELU of it and the product are each rounded."""
    if dtype in EMULATED:
        pytest.skip("no instructions for it")
    torch.manual_seed(0)
    layer = GEGLU(40, 160).to(dtype).requires_grad_(False)
    x = torch.randn(2, 70, 40).to(dtype)
    value, gate = F.linear(x.double(), layer.proj.weight.double(), layer.proj.bias.double()).chunk(2, dim=-1)
    expected = value * F.gelu(gate)
    together = layer(x)
    calls: list[Tensor] = []
    layer.proj.register_forward_hook(lambda *given: calls.append(given[2]))
    apart = layer(x)
    assert len(calls) == 1
    assert float((together - expected).norm() / expected.norm()) <= {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    assert float((together - expected).norm()) <= 1.2 * float((apart - expected).norm())


@torch.no_grad()
def test_a_gate_whose_weights_travel() -> None:
    """It is computed as if they did not; in parts, whose halves come one after the other, it is rounded otherwise."""
    layer = GEGLU(40, 160).requires_grad_(False)
    x = torch.randn(2, 70, 40)
    expected = layer(x)
    sizes: list[int] = []

    def travel(module: nn.Module, forward: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        out = computed_in_parts(module, limit, forward, args, kwargs)
        sizes.append(out.shape[-1])
        return out

    limit = 1 << 20
    around_forward(layer.proj, travel, only_moves=True)
    assert torch.equal(layer(x), expected)
    limit = 64 * 41 * 4
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-5)
    assert sizes == [160, 320]


@torch.no_grad()
def test_a_layer_is_traced_and_counted() -> None:
    """2 x 5 x 300 x 50 operations, and beside the inputs just the result is made."""
    layer = Linear(300, 50).requires_grad_(False)
    x = torch.randn(1, 5, 300)
    assert torch.allclose(layer(x), nn.Linear.forward(layer, x), rtol=0, atol=1e-5)
    layer.to("meta")
    work = trace(layer, lambda: (torch.empty(1, 5, 300, device="meta"),), on_host=True)
    assert sum(ops.flops for ops in work.ops if ops.kind == "matmul") == 2 * 5 * 300 * 50
    assert work.peak == 5 * (300 + 50) * 4
