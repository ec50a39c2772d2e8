"""Blocks that are built alike, traced once for all, against each of them traced by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from tests.unit.plan.real import real_ops
from torch import Tensor, nn

from leandiffusion.attention import backends
from leandiffusion.attention.sliced import Sliced
from leandiffusion.core.shapes import repeated
from leandiffusion.families.base import families
from leandiffusion.measure.work import allocated_bytes
from leandiffusion.modules.blocks import ResnetBlock2D
from leandiffusion.modules.convolution import Conv2d
from leandiffusion.modules.transformer import BasicTransformerBlock, attention_layers
from leandiffusion.offload.parts import PART_BYTES, computed_in_parts
from leandiffusion.plan import stages
from leandiffusion.plan.empty import empty_networks
from leandiffusion.plan.repeats import repeated_blocks
from leandiffusion.plan.stages import trace_stage
from leandiffusion.plan.trace import trace
from leandiffusion.plan.work import StageWork
from leandiffusion.run.size import CallSize

MIB = 1 << 20


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Blocks whose forward ran."""
    found: list[nn.Module] = []
    for kind in (ResnetBlock2D, BasicTransformerBlock):

        def forward(self: nn.Module, *args: Any, own: Any = kind.forward) -> Any:
            found.append(self)
            return own(self, *args)

        monkeypatch.setattr(kind, "forward", forward)
    return found


def is_close(one: StageWork, other: StageWork) -> bool:
    """Equal, but for how peaks are rounded to whole bytes, and sums of floats."""
    near = [abs(one.peaks[size] - other.peaks[size]) <= 1 for size in one.peaks]
    assert near
    return all(near) and all(getattr(one, name) == getattr(other, name) for name in ("kept", "ops", "around"))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("how", ["", "in parts", "packed", "sliced", "half", "perturbed", "controlled"])
def test_the_work_is_that_of_all_blocks_by_themselves(family: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = families.get(family)
    networks = empty_networks(kind, torch.bfloat16 if how == "half" else torch.float32)
    call = CallSize(256, 384, 1 + (how == "sliced"), perturbed=how == "perturbed")
    if how == "sliced":
        for _, layer in attention_layers(networks["unet"]):
            layer.backend = Sliced(backends.get("plain"), "max")
    for module in (m for network in networks.values() for m in network.modules() if isinstance(m, Conv2d)):
        module.packs = how == "packed"
    options: dict[str, Any] = {"part_bytes": PART_BYTES} if how == "in parts" else {}
    names = ["denoise", "decode", *([] if how else ["encode"])]

    def all_stages() -> list[StageWork]:
        return [trace_stage(name, networks, call, **options) for name in names]

    once = all_stages()
    monkeypatch.setattr(stages, "repeated_blocks", lambda owners: nullcontext())
    assert all(map(is_close, once, all_stages()))


def test_blocks_that_are_alike_run_once(ran: list[nn.Module]) -> None:
    """Of SDXL's UNet one of 70 transformer blocks for each of its two widths."""
    trace_stage("denoise", empty_networks(families.get("sdxl")), CallSize(512, 512))
    transformers = [block for block in ran if isinstance(block, BasicTransformerBlock)]
    assert sorted(block.norm1.normalized_shape for block in transformers) == [(640,), (1280,)]


def _setting(block: ResnetBlock2D) -> None:
    block.norm1.eps = 1.0


def _hook(block: ResnetBlock2D) -> None:
    block.conv1.register_forward_hook(lambda *_: None)


def _forward(block: ResnetBlock2D) -> None:
    block.conv2.forward = block.conv2.forward


def _strides(block: ResnetBlock2D) -> None:
    block.conv1.bias.data = torch.empty(64, device="meta")[::2]


@pytest.mark.parametrize("change", [None, _setting, _hook, _forward, _strides])
def test_a_block_in_which_anything_is_other_is_run_by_itself(
    change: Callable[[ResnetBlock2D], None] | None, ran: list[nn.Module]
) -> None:
    network = nn.Sequential(*(ResnetBlock2D(32, 32, None, 8, 1e-5) for _ in range(4))).to("meta")
    if change is not None:
        change(network[2])  # type: ignore[arg-type]
    with repeated_blocks([network]):
        trace(lambda: network(torch.empty(1, 32, 8, 8, device="meta")), on_host=True)
    assert ran == [network[0], *([] if change is None else [network[2]])]


def test_other_shapes_are_run_by_themselves(ran: list[nn.Module]) -> None:
    block = ResnetBlock2D(32, 32, 16, 8, 1e-5).to("meta")

    def work() -> None:
        for rows, side, dtype in ((1, 8, torch.float32), (1, 8, torch.float32), (2, 8, torch.float32), (2, 4, None)):
            block(torch.empty(rows, 32, side, side, device="meta"), torch.empty(rows, 16, device="meta", dtype=dtype))

    with repeated_blocks([block]):
        trace(work, on_host=True)
    assert len(ran) in (3, 4)  # the second's embedding is another tensor, which may lie where the first's was


def test_networks_are_as_before() -> None:
    network = nn.Sequential(ResnetBlock2D(32, 32, None, 8, 1e-5))
    with suppress(ZeroDivisionError), repeated_blocks([network]):
        assert "forward" in vars(network[0])
        raise ZeroDivisionError
    assert "forward" not in vars(network[0])


def test_only_what_gives_one_new_tensor_and_keeps_nothing_is_run_once() -> None:
    x, kept, ran = torch.empty(MIB, dtype=torch.uint8, device="meta"), [], []

    def new() -> Tensor:
        return x + x

    def view() -> Tensor:
        return x[: MIB // 2]

    def part() -> Tensor:
        return (x + x)[: MIB // 2]

    def keeping() -> Tensor:
        kept.append(x + x)
        return x + x

    def none() -> None:
        (x + x).add_(x)

    def several() -> list[Tensor]:
        return [x + x]

    for function, runs, peak in (
        (new, 1, 3),
        (view, 3, 0),
        (part, 3, 3),
        (keeping, 3, 6),
        (several, 3, 3),
        (none, 1, 1),
    ):

        def counted(function: Callable[[], Any] = function) -> Any:
            ran.append(function)
            return function()

        def work(counted: Callable[[], Any] = counted) -> list[Any]:
            return [repeated("it", counted, (), {}) for _ in range(3)]

        ran.clear()
        found = trace(work, on_host=True)
        kept.clear()
        assert len(ran) == runs, function
        assert found.peak == peak * MIB, function
        assert sum(ops.count for ops in found.ops) == {view: 0, keeping: 6, none: 6}.get(function, 3)


@pytest.mark.parametrize(("ins", "outs", "side", "double"), [(160, 288, 32, False), (128, 288, 16, True)])
def test_a_layer_in_parts_is_traced_as_it_runs(ins: int, outs: int, side: int, double: bool) -> None:
    """What its parts share is made by the first alone, and held until the last: by bytes, within the small ones that
    are not traced, and by operations."""
    found: dict[str, tuple[int, Any]] = {}
    for device in ("cpu", "meta"):
        conv = Conv2d(ins, outs).to(device).requires_grad_(False)
        x = torch.zeros(2, ins, side, side, device=device).to(memory_format=torch.channels_last)
        limit = 96 * conv.weight.nbytes // outs + 1024  # 96 rows, with their biases

        def work(conv: Conv2d = conv, x: Tensor = x, limit: int = limit) -> Tensor:
            return computed_in_parts(conv, limit, conv.forward, (x,), {"double": double})

        with torch.no_grad():
            if device == "cpu":
                work()
                found[device] = allocated_bytes(work).peak, real_ops(work)
            else:
                traced = trace(work, on_host=True)
                found[device] = traced.peak, traced.ops
    (real, ops), (told, same) = found["cpu"], found["meta"]
    assert told == pytest.approx(real, abs=4096)
    assert [(o.kind, o.count, o.nbytes) for o in same] == [(o.kind, o.count, o.nbytes) for o in ops]
