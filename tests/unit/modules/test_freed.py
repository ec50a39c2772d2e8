"""Feature maps are freed as soon as they are used: seen by weak references, and in the allocator's peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from tests.unit.modules.test_unet import TINY
from torch import Tensor, nn

from leandiffusion.measure.work import allocated_bytes
from leandiffusion.modules import winograd
from leandiffusion.modules.blocks import ResnetBlock2D
from leandiffusion.modules.transformer import BasicTransformerBlock
from leandiffusion.modules.unet import UNet2DConditionModel


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def before(module: nn.Module, look: Callable[[Tensor], object]) -> None:
    """Have `look` called with the module's input before it runs."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        look(args[0])

    module.register_forward_pre_hook(hook)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_skip_connection_goes_when_it_is_joined(depth: int) -> None:
    unet = UNet2DConditionModel(**TINY | {"layers_per_block": depth}).eval()
    skips: list[ref[Tensor]] = []
    alive: list[int] = []
    unet.conv_in.register_forward_hook(lambda module, args, out: skips.append(ref(out)))
    for block in unet.down_blocks:
        block.register_forward_hook(lambda module, args, out: skips.extend(map(ref, out[1])))
    for block in unet.up_blocks:
        for resnet in block.resnets:  # type: ignore[union-attr]
            # The last one, and the smallest, the middle was given too.
            before(resnet, lambda x: alive.append(sum(skip() is not None for skip in skips[:-1])))
    unet(torch.randn(2, 4, 8, 8), 500, torch.randn(2, 5, 12))
    assert alive == list(range(unet.skip_count))[::-1]


def test_what_comes_from_below_goes_when_it_is_joined() -> None:
    unet = UNet2DConditionModel(**TINY).eval()
    made: list[ref[Tensor]] = []
    alive: list[bool] = []
    first, second = unet.up_blocks
    first.register_forward_hook(lambda module, args, out: made.append(ref(out)))
    before(second.resnets[0], lambda x: alive.append(made[0]() is not None))  # type: ignore[index]
    unet(torch.randn(2, 4, 8, 8), 500, torch.randn(2, 5, 12))
    assert alive == [False]


def test_the_second_convolution_of_a_resnet_has_its_input_only() -> None:
    resnet = ResnetBlock2D(8, 8, 4, 4, 1e-5).eval()
    normed: list[ref[Tensor]] = []
    alive: list[bool] = []
    before(resnet.norm2, lambda h: normed.append(ref(h)))
    before(resnet.conv2, lambda h: alive.append(normed[0]() is not None))
    resnet(torch.randn(1, 8, 8, 8), torch.randn(1, 4))
    assert alive == [False]


def test_what_attention_gave_is_gone_when_the_feed_forward_runs() -> None:
    block = BasicTransformerBlock(8, 2, 12, upcast=False).eval()
    given: list[ref[Tensor]] = []
    alive: list[int] = []
    for attention in (block.attn1, block.attn2):
        attention.register_forward_hook(lambda module, args, out: given.append(ref(out)))
    before(block.ff, lambda x: alive.append(sum(each() is not None for each in given)))
    block(torch.randn(2, 16, 8), torch.randn(2, 5, 12))
    assert alive == [0]


def test_weights_that_are_used_once_are_not_kept_transformed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of them is in memory at a time, and for a larger map, which uses them again, all."""
    monkeypatch.setattr(winograd, "PART_BYTES", 36 * 4 * 128 * 16)
    weight = torch.randn(128, 128, 3, 3)
    whole = 36 * weight[:, :, 0, 0].nbytes

    def peak(side: int) -> int:
        x = torch.randn(1, 128, side, side)
        winograd.convolve(x, weight, None)
        return allocated_bytes(lambda: winograd.convolve(x, weight, None)).peak

    assert peak(8) < whole / 2
    assert peak(128) > whole
