"""Weights in oneDNN's order: the same numbers to everybody, the same results, and what is written to them counts."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leandiffusion import UNet2DConditionModel
from leandiffusion.device.capabilities import onednn_computes
from leandiffusion.modules import convolution, linear
from leandiffusion.modules.convolution import Conv2d
from leandiffusion.modules.linear import Linear
from leandiffusion.techniques import packed_weights
from leandiffusion.weights import packed as packing
from leandiffusion.weights.packed import PackedTensor, is_packed, unpack
from leandiffusion.weights.residence import load_from_disk, names_on_disk

pytestmark = pytest.mark.skipif(not onednn_computes(torch.float32), reason="torch was built without oneDNN")

# Relative to the largest value: a convolution may add its 600 products in another order, each rounded at 6e-8.
ROUNDING = 5e-6

LAYERS: dict[str, dict[str, Any]] = {
    "3x3": {}, "1x1": {"size": 1, "padding": 0}, "stride 2": {"stride": 2}, "no padding": {"stride": 2, "padding": 0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def every_layer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(convolution, "FEWEST_NUMBERS", 0)
    with torch.no_grad():
        yield


def make(ins: int = 16, outs: int = 24, *, last: bool = False, **geometry: Any) -> tuple[Conv2d, Tensor]:
    """A layer that packs, and what its weight is."""
    torch.manual_seed(0)
    conv = Conv2d(ins, outs, **geometry)
    if last:
        conv.to(memory_format=torch.channels_last)
    plain = conv.weight.detach().clone()
    conv.packs = True
    return conv, plain


def inputs(ins: int = 16, side: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, ins, side, side, generator=torch.Generator().manual_seed(1))


def right(conv: Conv2d, weight: Tensor, x: Tensor) -> bool:
    expected = F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)
    return bool((conv(x) - expected).abs().max() <= ROUNDING * expected.abs().max())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_is_the_plain_weight_bit_for_bit(name: str, last: bool) -> None:
    conv, plain = make(last=last, **LAYERS[name])
    parameter = conv.weight
    assert right(conv, plain, inputs())
    assert conv.weight is parameter
    assert isinstance(parameter, PackedTensor)
    assert isinstance(parameter, nn.Parameter)
    assert (parameter.shape, parameter.dtype, parameter.stride()) == (plain.shape, plain.dtype, plain.stride())
    assert torch.equal(parameter, plain)
    assert parameter.packed is not None  # looking at it leaves it so
    unpack(conv)
    assert conv.weight is parameter
    assert type(parameter) is nn.Parameter
    assert parameter.requires_grad
    assert parameter.stride() == plain.stride()
    assert torch.equal(parameter, plain)


def test_several_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    reorder = packing._reorder

    def noted(weight: Tensor, geometry: Any, size: tuple[int, ...]) -> Tensor:
        made.append(size)
        return reorder(weight, geometry, size)

    monkeypatch.setattr(packing, "_reorder", noted)
    conv, plain = make()
    for side in (8, 4, 8, 4, 8):  # in turn: one order does for both
        assert right(conv, plain, inputs(side=side))
    assert made == [(2, 16, 8, 8)]
    for _ in range(3):  # another size for good
        assert right(conv, plain, inputs(side=5, batch=1))
    assert made == [(2, 16, 8, 8), (1, 16, 5, 5)]
    assert torch.equal(conv.weight, plain)


@pytest.mark.parametrize("way", ["in place", "through data", "a new value", "an item"])
def test_what_is_written_counts_and_is_packed_again(way: str) -> None:
    conv, plain = make()
    conv(inputs())
    if way == "in place":
        conv.weight.mul_(2)
    if way == "through data":
        conv.weight.data.mul_(2)
    if way == "a new value":
        conv.weight.data = 2 * plain
    if way == "an item":
        conv.weight[:] = 2 * plain
    assert right(conv, 2 * plain, inputs())
    assert isinstance(conv.weight, PackedTensor)
    assert conv.weight.packed is not None
    assert torch.equal(conv.weight, 2 * plain)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("hold", [lambda w: w[0], lambda w: w.data.view(-1), lambda w: w.detach(), lambda w: w.numpy()])
def test_what_somebody_holds_is_used_plain_until_it_is_let_go(hold: Any, before: bool) -> None:
    conv, plain = make()
    if before:
        conv(inputs())
    held: Any = hold(conv.weight.requires_grad_(False))
    conv(inputs())
    held[...] = 0
    expected = plain.clone()
    hold(expected)[...] = 0
    assert right(conv, expected, inputs())
    held[...] = 1  # after a convolution too
    hold(expected)[...] = 1
    assert right(conv, expected, inputs())
    del held
    assert right(conv, expected, inputs())
    assert conv.weight.packed is not None
    assert torch.equal(conv.weight, expected)


def test_undone_while_somebody_holds_a_view() -> None:
    conv, plain = make()
    conv(inputs())
    view = conv.weight.requires_grad_(False)[0]
    conv.packs = False
    unpack(conv)
    view.zero_()
    expected = plain.clone()
    expected[0] = 0
    assert torch.equal(conv.weight, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_casting(dtype: torch.dtype) -> None:
    conv, plain = make()
    conv(inputs())
    conv.to(dtype)
    assert torch.equal(conv.weight, plain.to(dtype))
    y = conv(inputs().to(dtype))
    conv.packs = False
    unpack(conv)
    assert torch.allclose(conv(inputs().to(dtype)), y, rtol=1e-2)


def test_copies_and_pickles() -> None:
    conv, plain = make()
    conv(inputs())
    twin = copy.deepcopy(conv)
    conv.weight.zero_()
    assert torch.equal(twin.weight, plain)
    assert right(twin, plain, inputs())
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    assert right(torch.load(file, weights_only=False), plain, inputs())
    assert torch.equal(twin.state_dict()["weight"], plain)


def test_gradients_go_to_the_parameter() -> None:
    conv, plain = make()
    conv(inputs())
    with torch.enable_grad():
        conv(inputs()).sum().backward()
    expected = plain.clone().requires_grad_()
    with torch.enable_grad():
        F.conv2d(inputs(), expected, conv.bias, padding=1).sum().backward()
    assert conv.weight.grad is not None
    assert torch.allclose(conv.weight.grad, expected.grad, rtol=1e-4)  # type: ignore[arg-type]


def test_a_large_map_after_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "pays", lambda: True)
    monkeypatch.setattr(convolution, "onednn_multiplies_faster", lambda: False)
    conv, plain = make(96, 96)
    assert right(conv, plain, inputs(96))
    assert is_packed(conv.weight)
    x = inputs(96, side=32)
    expected = F.conv2d(x, plain, conv.bias, padding=1)
    assert (conv(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not is_packed(conv.weight)
    assert right(conv, plain, inputs(96))
    assert is_packed(conv.weight)


def test_a_large_map_waits_for_nobody_who_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "pays", lambda: True)
    monkeypatch.setattr(convolution, "onednn_multiplies_faster", lambda: False)
    conv, _ = make(96, 96)
    x = inputs(96, side=32)
    done = threading.Event()

    def convolve() -> None:
        with torch.no_grad():
            conv(x)
        done.set()

    with packing._packing:
        thread = threading.Thread(target=convolve)
        thread.start()
        went_through = done.wait(10)
    thread.join()
    assert went_through


def test_threads_pack_once(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, plain = make(64, 64)
    made: list[Tensor] = []
    reorder = packing._reorder
    monkeypatch.setattr(packing, "_reorder", lambda *args: made.append(reorder(*args)) or made[-1])
    start, results = threading.Barrier(6), []

    def draw() -> None:
        start.wait()
        with torch.no_grad():
            results.append(right(conv, plain, inputs(64)))

    threads = [threading.Thread(target=draw) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6
    assert len(made) == 1


def test_it_is_in_memory_and_no_weight_of_a_file(tmp_path: Any) -> None:
    network = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    ).eval()  # fmt: skip
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for module in network.modules():
        if isinstance(module, Conv2d):
            module.packs = True
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 12)
    y = network(x, 5, text).sample
    assert is_packed(network.conv_in.weight)
    assert not names_on_disk(network)
    assert not load_from_disk(network)
    assert is_packed(network.conv_in.weight)
    network.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())
    assert torch.allclose(again(x, 5, text).sample, y, rtol=0, atol=1e-5 * float(y.abs().max()))


def test_another_batch_is_no_reason_to_pack_again(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, plain = make()
    packed: list[tuple[int, ...]] = []
    reorder = packing._reorder

    def counting(weight: Tensor, geometry: Any, size: tuple[int, ...]) -> Tensor:
        packed.append(size)
        return reorder(weight, geometry, size)

    monkeypatch.setattr(packing, "_reorder", counting)
    for batch in (2, 2, 1, 1, 1, 4, 4):
        assert right(conv, plain, inputs(batch=batch))
    assert packed == [(2, 16, 8, 8)]
    for side in (12, 12, 12):
        assert right(conv, plain, inputs(side=side))
    assert packed == [(2, 16, 8, 8), (2, 16, 12, 12)]


def make_linear(monkeypatch: pytest.MonkeyPatch, ins: int = 48, outs: int = 96) -> tuple[Linear, Tensor, Tensor]:
    """A layer that packs, what its weight is, and inputs."""
    monkeypatch.setattr(linear, "onednn_multiplies_faster", lambda: True)
    torch.manual_seed(0)
    layer = Linear(ins, outs)
    plain = layer.weight.detach().clone()
    layer.packs = True
    return layer, plain, torch.randn(2, 20, ins)


def near(y: Tensor, expected: Tensor) -> bool:
    """Of 48 products, rounded at 6e-8 each, relative to the largest sum."""
    return bool((y - expected).abs().max() <= 1e-6 * expected.abs().max())


def test_a_linear_layer_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, plain, x = make_linear(monkeypatch)
    parameter = layer.weight
    for rows in (x, x[:1], x[0], x[0, :1]):  # other numbers of them do not bring it into another order
        assert near(layer(rows), F.linear(rows, plain, layer.bias))
    assert layer.weight is parameter
    assert isinstance(parameter, PackedTensor)
    assert parameter.packed is not None
    assert torch.equal(parameter, plain)
    parameter.mul_(2)
    assert near(layer(x), F.linear(x, 2 * plain, layer.bias))
    assert parameter.packed is not None  # again
    unpack(layer)
    assert type(parameter) is nn.Parameter
    assert torch.equal(parameter, 2 * plain)


def test_a_gated_layer_is_packed_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, plain, x = make_linear(monkeypatch)
    value, gate = F.linear(x, plain, layer.bias).chunk(2, dim=-1)
    assert near(layer(x, gate=True), value * F.gelu(gate))
    assert isinstance(layer.weight, PackedTensor)
    assert layer.weight.packed is not None
    assert len(layer.weight.packed.parts) == 2
    assert torch.equal(layer.weight, plain)
    assert near(layer(x), F.linear(x, plain, layer.bias))  # whole, where somebody looks on
    assert len(layer.weight.packed.parts) == 1
    assert torch.equal(layer.weight, plain)


def test_a_linear_layer_that_is_not_onednns_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, plain, x = make_linear(monkeypatch)
    monkeypatch.setattr(linear, "onednn_multiplies_faster", lambda: False)
    assert near(layer(x), F.linear(x, plain, layer.bias))
    assert not is_packed(layer.weight)


def test_linear_layers_are_packed_in_networks_with_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights, "FEWEST_NUMBERS", 0)
    layer, conv = Linear(4, 4), Conv2d(4, 4)
    assert packed_weights._layers(nn.Sequential(conv, layer)) == [conv, layer]
    assert packed_weights._layers(nn.Sequential(layer)) == []
