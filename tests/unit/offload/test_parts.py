"""Heavy layers that travel and compute in parts: the same numbers, with less in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leandiffusion import UNet2DConditionModel
from leandiffusion.core.repeats import made_once, same_inputs
from leandiffusion.modules import winograd
from leandiffusion.modules.convolution import Conv2d
from leandiffusion.modules.linear import Linear
from leandiffusion.modules.lora import LoraLinear
from leandiffusion.offload.engine import Engine
from leandiffusion.offload.parts import computed_in_parts, in_parts, joined, output_dim
from leandiffusion.offload.policy import Policy
from leandiffusion.offload.residency import Pieces, residency
from leandiffusion.offload.units import Unit, cut
from leandiffusion.techniques.offloading import run_through
from leandiffusion.weights.load import open_network
from leandiffusion.weights.residence import names_on_disk

CPU = torch.device("cpu")
LIMIT = 100_000
SOME = 300_000  # that 32 rows of the largest layer have
CONFIG: dict[str, Any] = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": (64, 128), "norm_num_groups": 8,
    "cross_attention_dim": 32, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
INPUTS = (torch.randn(2, 4, 8, 8), torch.tensor(7), torch.randn(2, 5, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "unet"
    UNet2DConditionModel(**CONFIG).save_pretrained(folder)
    return folder


def travelling(folder: Path, **settings: Any) -> tuple[UNet2DConditionModel, Engine]:
    unet = open_network(UNet2DConditionModel, folder).requires_grad_(False)
    engine = Engine({"unet": unet}, Policy(CPU, **settings))
    run_through(engine, CPU)
    return unet, engine


def compute(unet: nn.Module) -> Tensor:
    with torch.no_grad():
        return unet(*INPUTS).sample


def parts_of(layer: nn.Module, limit: int = LIMIT) -> list[Unit]:
    return list(in_parts(cut({"layer": layer}, "leaf").units, limit))


def test_parts_are_all_rows_once_and_none_is_larger_than_the_limit() -> None:
    layer = Linear(100, 1000)
    parts = parts_of(layer)
    spans = [part.weights[0].span for part in parts]
    assert all(part.nbytes <= LIMIT for part in parts)
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == 1000
    assert all((end - begin) % 32 == 0 for begin, end in spans[:-1])
    assert [part.begins_layer for part in parts] == [True, *[False] * (len(parts) - 1)]
    assert sum(weight.nbytes for part in parts for weight in part.weights) == sum(p.nbytes for p in layer.parameters())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(64, 256, 3, groups=2),
        nn.LayerNorm(50_000),
        nn.Linear(50_000, 48),  # rows that are too few to be worth it
        nn.GRUCell(300, 300),
        type("Twice", (Linear,), {"forward": lambda self, x: nn.Linear.forward(self, x).cumsum(-1)})(100, 1000),
    ],
    ids=["groups", "norm", "few rows", "cell", "a subclass"],
)
def test_what_does_not_compute_by_rows_travels_whole(layer: nn.Module) -> None:
    assert len(parts_of(layer)) == 1


def test_a_layer_whose_bias_stays_in_memory_travels_whole(folder: Path) -> None:
    unet, engine = travelling(folder, part_bytes=LIMIT)
    plain = open_network(UNet2DConditionModel, folder).requires_grad_(False)
    heavy = next(m for m, parts in engine._held.items() if len(parts) > 1)
    name = next(name for name, module in unet.named_modules() if module is heavy)
    bias = torch.ones(len(heavy.weight))
    for network in (unet, plain):
        network.get_submodule(name).bias = nn.Parameter(bias, requires_grad=False)
    assert torch.allclose(compute(unet), compute(plain), rtol=1e-5, atol=1e-5)
    assert len(engine._held[heavy]) == 1


def test_layers_that_compute_in_a_way_of_their_own_travel_whole() -> None:
    assert len(parts_of(nn.utils.spectral_norm(nn.Linear(100, 1000)))) == 1
    layer = nn.Linear(100, 1000)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert len(parts_of(layer)) == 1


def test_a_forward_that_somebody_wraps_later(folder: Path) -> None:
    unet, engine = travelling(folder, part_bytes=LIMIT)
    expected = compute(unet)
    heavy = next(m for m, parts in engine._held.items() if len(parts) > 1)
    forward = heavy.forward
    heavy.forward = lambda *args, **kwargs: 2 * forward(*args, **kwargs)
    doubled = compute(unet)
    heavy.forward = forward
    assert not torch.allclose(doubled, expected)
    assert torch.equal(compute(unet), expected)


def test_a_copy_of_a_travelling_network_travels_too(folder: Path) -> None:
    unet, _ = travelling(folder, part_bytes=LIMIT)
    expected = compute(unet)
    twin = copy.deepcopy(unet)
    engine = Engine({"unet": twin}, Policy(CPU, part_bytes=LIMIT))
    run_through(engine, CPU)
    assert torch.equal(compute(twin), expected)
    assert any(len(parts) > 1 for parts in engine._held.values())


def test_layers_with_adapters_travel_whole() -> None:
    layer = Linear(100, 1000)
    assert output_dim(layer) == -1
    layer.__class__ = LoraLinear
    assert output_dim(layer) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: Linear(100, 1000), (2, 7, 100)),
        (lambda: nn.Linear(100, 1000, bias=False), (100,)),
        (lambda: nn.Conv2d(64, 256, 3), (64, 8, 8)),
        (lambda: Conv2d(96, 288), (1, 96, 40, 40)),  # by Winograd's algorithm
        (lambda: Conv2d(256, 480), (2, 256, 4, 4)),
        (lambda: Conv2d(320, 640, stride=2), (2, 320, 8, 8)),  # as one product
        (lambda: Conv2d(100, 1000, 1, padding=0), (2, 100, 5, 3)),
    ],
    ids=["linear", "without a bias", "without a batch", "large map", "small map", "one product", "pixels"],
)
def test_the_same_numbers(layer: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    module, x = layer().to(dtype).requires_grad_(False), torch.randn(shape).to(dtype)
    maps = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    before = dict(module._parameters)
    with torch.no_grad():
        expected = module(maps)
        found = computed_in_parts(module, LIMIT, module.forward, (maps,), {})
    assert found.dtype == dtype
    assert found.stride() == expected.stride()
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3  # one rounding of 8 bits
    assert torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance)
    assert all(module._parameters[name] is p for name, p in before.items())


@pytest.mark.parametrize("slots", [1, 2])
def test_a_network_draws_the_same_with_a_smaller_ring(folder: Path, slots: int) -> None:
    plain, whole = travelling(folder, slots=slots, part_bytes=1 << 30)
    unet, engine = travelling(folder, slots=slots, part_bytes=SOME)
    assert torch.allclose(compute(unet), compute(plain), rtol=1e-5, atol=1e-5)
    largest, ring = max(unit.nbytes for unit in cut({"unet": unet}, "leaf").units), engine._conveyor._arena.nbytes
    assert whole._conveyor._arena.nbytes == slots * largest
    assert ring <= slots * SOME < whole._conveyor._arena.nbytes
    assert residency(Pieces({"unet": unet}), engine.policy).running["unet"] == ring
    engine.close()
    assert torch.equal(compute(unet), compute(open_network(UNet2DConditionModel, folder)))


def test_a_network_that_computes_fails_in_a_part_and_is_usable_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, engine = travelling(folder, part_bytes=LIMIT)
    expected = compute(unet)
    calls, run_with = [0], Engine._run_with

    def fail(self: Engine, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == len(self._held) + 1:
            raise KeyboardInterrupt
        return run_with(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_run_with", fail)
        with pytest.raises(KeyboardInterrupt):
            compute(unet)
    assert len(names_on_disk(unet)) == len(list(unet.parameters()))
    assert torch.equal(compute(unet), expected)
    assert any(len(parts) > 1 for parts in engine._held.values())


def test_a_weight_of_a_layer_in_parts_that_is_written_to(folder: Path) -> None:
    unet, engine = travelling(folder, part_bytes=LIMIT)
    plain = open_network(UNet2DConditionModel, folder).requires_grad_(False)
    heavy = next(m for m, parts in engine._held.items() if len(parts) > 1)
    name = next(name for name, module in unet.named_modules() if module is heavy)
    compute(unet)
    for network in (unet, plain):
        with torch.no_grad():
            network.get_submodule(name).weight[40].fill_(0.5)
    assert torch.allclose(compute(unet), compute(plain), rtol=1e-5, atol=1e-5)
    replaced = torch.zeros_like(plain.get_submodule(name).weight)
    for network in (unet, plain):
        network.get_submodule(name).weight = nn.Parameter(replaced, requires_grad=False)
    assert torch.allclose(compute(unet), compute(plain), rtol=1e-5, atol=1e-5)


def test_hooks_see_a_layer_called_once_with_all_of_its_output(folder: Path) -> None:
    unet, engine = travelling(folder, part_bytes=LIMIT)
    heavy = next(m for m, parts in engine._held.items() if len(parts) > 1)
    seen: list[int] = []
    dim: Any = output_dim(heavy)
    heavy.register_forward_hook(lambda module, args, output: seen.append(output.shape[dim]))
    compute(unet)
    assert seen == [len(heavy.weight)]


def test_parts_are_told_where_no_heavy_layer_computes_whole(folder: Path) -> None:
    unet = open_network(UNet2DConditionModel, folder)
    for fraction, told in ((0.0, LIMIT), (0.5, None)):
        assert residency(Pieces({"unet": unet}), Policy(CPU, "leaf", fraction, part_bytes=LIMIT)).part_bytes == told
    assert residency(Pieces({"unet": unet}), Policy(CPU, "block", part_bytes=LIMIT)).part_bytes is None


@pytest.mark.parametrize(
    "settings", [{"part_bytes": LIMIT}, {}, {"granularity": "block"}, {"granularity": "component"}]
)
def test_gradients_of_the_input(folder: Path, settings: dict[str, Any]) -> None:
    """The memory through which weights travel holds others by the time of the backward pass."""
    gradients = []
    for travels in (False, True):
        unet = open_network(UNet2DConditionModel, folder).requires_grad_(False)
        if travels:
            run_through(Engine({"unet": unet}, Policy(CPU, **settings)), CPU)
        x = INPUTS[0].clone().requires_grad_()
        unet(x, *INPUTS[1:]).sample.square().sum().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().max() > 1e-3
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_what_repeats_is_made_once() -> None:
    made = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    assert [made_once("a", make), made_once("a", make)] == [0, 1]
    with same_inputs():
        assert [made_once("a", make), made_once("a", make), made_once("b", make)] == [2, 2, 3]
        with same_inputs():
            assert made_once("a", make) == 4
        assert made_once("a", make) == 2


@pytest.mark.parametrize("kept", [True, False], ids=["tiles are shared", "too many to share"])
def test_parts_of_a_convolution_share_what_they_read(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = Conv2d(96, 384).requires_grad_(False), torch.randn(1, 96, 40, 40)
    made: list[int] = []
    transform = winograd.transform
    monkeypatch.setattr(winograd, "transform", lambda *a, **k: made.append(1) or transform(*a, **k))
    monkeypatch.setattr(winograd, "SHARED_BYTES", winograd.SHARED_BYTES if kept else 0)
    with torch.no_grad():
        expected, whole = conv(x), len(made)
        made.clear()
        found = computed_in_parts(conv, 340_000, conv.forward, (x,), {})
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert len(parts_of(conv, 340_000)) == 4
    assert len(made) == (whole if kept else 4 * whole)


def test_joining() -> None:
    x = torch.randn(2, 6, 3, 5)
    for whole in (x, x.to(memory_format=torch.channels_last)):
        out = joined(iter(whole.split((4, 2), 1)), 1, 6)
        assert torch.equal(out, x)
        assert out.stride() == whole.stride()
