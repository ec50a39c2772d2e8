"""Weights in eight bits: what layers compute with them, and that everybody else sees the exact ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leandiffusion.device.capabilities import fast_int8, why_no_int8
from leandiffusion.modules.convolution import Conv2d
from leandiffusion.weights.int8 import Int8Tensor, is_int8, put_int8, take_int8

pytestmark = pytest.mark.skipif(bool(why_no_int8(torch.device("cpu"))), reason="no kernels for eight bits here")

# Rounding to 255 steps adds noise of 1/sqrt(12) of a step. For normal numbers, whose largest is 3 to 4 times their
# deviation, that is 1% of them, and 2% in seven bits, which is what inputs have without VNNI.
NOISE = 0.04


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        torch.manual_seed(0)
        yield


def layers() -> list[Any]:
    return [
        nn.Linear(96, 64),
        nn.Linear(96, 64, bias=False),
        Conv2d(96, 64),
        Conv2d(96, 64, 1, padding=0),
        Conv2d(96, 64, stride=2),
    ]


def inputs_of(layer: nn.Module) -> Tensor:
    return torch.randn(2, 30, 96) if isinstance(layer, nn.Linear) else torch.randn(2, 96, 6, 10) + 1


def noise(result: Tensor, exact: Tensor) -> float:
    """Of the result, relative to the exact one: deviations."""
    return float((result.double() - exact).std() / exact.double().std())


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_it_is_the_exact_result_but_for_rounding(number: int, dtype: torch.dtype) -> None:
    layer = layers()[number].to(dtype)
    x = inputs_of(layer).to(dtype)
    exact = layer.double()(x.double())
    layer.to(dtype)
    put_int8(layer, inputs=True)
    result = layer(x)
    assert (result.shape, result.dtype) == (exact.shape, dtype)
    assert 0.001 < noise(result, exact) < NOISE
    assert torch.equal(layer(x), result)


@pytest.mark.parametrize("number", range(5))
def test_everybody_else_sees_the_exact_weight(number: int) -> None:
    layer = layers()[number]
    weight, numbers = layer.weight, layer.weight.detach().clone()
    x = inputs_of(layer)
    put_int8(layer, inputs=True)
    layer(x)
    assert layer.weight is weight
    assert is_int8(weight)
    assert isinstance(weight, nn.Parameter)
    assert torch.equal(weight, numbers)
    assert torch.equal(layer.state_dict()["weight"].clone(), numbers)
    assert weight.norm() == numbers.norm()
    take_int8(layer)
    assert layer.weight is weight
    assert type(weight) is nn.Parameter
    assert torch.equal(weight, numbers)


@pytest.mark.parametrize("number", range(5))
def test_samples_do_not_depend_on_each_other(number: int) -> None:
    layer = layers()[number]
    x = inputs_of(layer)
    x[1] *= 100
    put_int8(layer, inputs=True)
    together = layer(x)
    assert torch.equal(layer(x[:1]), together[:1])
    assert torch.equal(layer(x[1:]), together[1:])


def test_a_small_token_beside_a_large_one_keeps_its_digits() -> None:
    layer = nn.Linear(96, 64, bias=False)
    x = torch.randn(2, 96)
    x[1] *= 1e4
    exact = layer(x)
    put_int8(layer, inputs=True)
    result = layer(x)
    assert noise(result[:1], exact[:1]) < NOISE
    assert noise(result[1:], exact[1:]) < NOISE


@pytest.mark.parametrize("number", [0, 2, 3])
def test_the_largest_numbers_do_not_overflow(number: int) -> None:
    layer = layers()[number]
    layer.weight.fill_(0.5)
    layer.bias.zero_()
    x = torch.ones_like(inputs_of(layer))
    exact = layer(x)
    put_int8(layer, inputs=True)
    torch.testing.assert_close(layer(x), exact, rtol=1e-5, atol=1e-5)  # every number is one that bytes have


def test_what_is_around_a_map_is_zero() -> None:
    layer = Conv2d(96, 64)
    x = torch.randn(1, 96, 6, 6) + 20  # whose least is far from zero
    exact = layer(x)
    put_int8(layer, inputs=True)
    assert noise(layer(x), exact) < NOISE


@pytest.mark.parametrize("number", range(5))
def test_inputs_can_stay_exact(number: int) -> None:
    layer = layers()[number]
    x, exact = inputs_of(layer), layer.weight.detach().clone()
    put_int8(layer, inputs=False)
    result, rounded = layer(x), layer.weight.rounded_weight()
    take_int8(layer)
    assert 0 < noise(rounded, exact) < NOISE / 2
    layer.weight.copy_(rounded)
    torch.testing.assert_close(result, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [0, 2, 3])
def test_rounded_weights_come_back_from_the_order_of_the_kernels(number: int) -> None:
    layer = layers()[number]
    x = inputs_of(layer)
    put_int8(layer, inputs=True)
    before = layer.weight.rounded_weight()
    layer(x)
    assert layer.weight.file.numbers.is_packed
    assert torch.equal(layer.weight.rounded_weight(), before)


@pytest.mark.parametrize("number", range(5))
def test_a_weight_that_was_written_to_counts_as_it_is(number: int) -> None:
    layer = layers()[number]
    x = inputs_of(layer)
    put_int8(layer, inputs=True)
    layer(x)
    layer.weight.mul_(2)
    changed = layer.weight.detach().clone()
    assert not is_int8(layer.weight)
    result = layer(x)
    take_int8(layer)
    assert torch.equal(layer.weight, changed)
    torch.testing.assert_close(result, layer(x))


def test_a_weight_that_somebody_looks_into_stays_as_it_is() -> None:
    layer = nn.Linear(96, 64)
    view = layer.weight.detach()[0]
    put_int8(layer, inputs=True)
    assert not isinstance(layer.weight, Int8Tensor)
    view.zero_()
    assert not layer.weight[0].any()


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(number: int, bad: float) -> None:
    layer = layers()[number]
    x = inputs_of(layer)
    x[0, 0] = bad
    put_int8(layer, inputs=True)
    result = layer(x)
    assert not result[0].isfinite().all()
    assert result[1].isfinite().all()


@pytest.mark.parametrize("number", [0, 2, 3, 4])
def test_nothing_gives_the_bias(number: int) -> None:
    layer = layers()[number]
    x = torch.zeros_like(inputs_of(layer))
    exact = layer(x)
    put_int8(layer, inputs=True)
    torch.testing.assert_close(layer(x), exact)


def test_gradients_are_those_of_the_exact_weight() -> None:
    layer = nn.Linear(96, 64)
    x = torch.randn(3, 96)
    with torch.enable_grad():
        expected = layer(x)
        put_int8(layer, inputs=True)
        result = layer(x)
    assert result.requires_grad
    assert torch.equal(result, expected)


def test_large_maps_go_by_winograd_where_that_is_faster() -> None:
    layer = Conv2d(96, 96)
    x = torch.randn(1, 96, 64, 64)
    put_int8(layer, inputs=True)
    result = layer(x)
    weight, bias = layer.weight.rounded_weight(), layer.bias
    inputs_exact = noise(result, F.conv2d(x, weight, bias, padding=1)) < 1e-4
    assert inputs_exact is not fast_int8()
