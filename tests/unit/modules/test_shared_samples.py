"""Several texts for one sample: what comes before the text is computed once, and the result is the same.

Tolerance: 1e-5 of the largest entry. Products of fewer rows may add in another order, at 6e-8 in each of 30 layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.modules.test_unet import SDXL, TINY
from torch import Tensor, nn

from leandiffusion.measure.work import count_flops
from leandiffusion.modules.transformer import BasicTransformerBlock, set_attention_slice
from leandiffusion.modules.unet import UNet2DConditionModel

EXACT = 1e-5

CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True},
    "text in the second level": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "two blocks behind each resnet": {"transformer_layers_per_block": 2, "layers_per_block": 2},
    "no text at all": {
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "mid_block_type": None,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def make(**config: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**TINY | config).eval()
    for p in unet.parameters():
        p *= 2 if p.dim() > 1 else 1  # so that text and time matter
    return unet


def inputs(samples: int, texts: int, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(samples, 4, height, width), torch.randn(texts, 5, 12)


def near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= EXACT * other.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("samples", "times"), [(1, 2), (3, 2), (2, 3)])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_is_what_doubled_samples_give(name: str, samples: int, times: int, size: tuple[int, int]) -> None:
    unet = make(**CONFIGS[name])
    x, text = inputs(samples, samples * times, *size)
    assert near(unet(x, 500, text).sample, unet(x.repeat(times, 1, 1, 1), 500, text).sample)


def with_masks(unet: UNet2DConditionModel) -> dict[str, Any]:
    return {"encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])}


def with_residuals(unet: UNet2DConditionModel) -> dict[str, Any]:
    shapes = [(8, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4)]
    down = [torch.randn(2, *shape) for shape in shapes]
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": torch.randn(2, 16, 4, 4)}


def with_sizes(unet: UNet2DConditionModel) -> dict[str, Any]:
    return {"added_cond_kwargs": {"text_embeds": torch.randn(2, 5), "time_ids": torch.randn(2, 6)}}


def with_freeu(unet: UNet2DConditionModel) -> dict[str, Any]:
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    return {}


def with_slices(unet: UNet2DConditionModel) -> dict[str, Any]:
    set_attention_slice(unet, 1)
    return {}


def with_a_processor(unet: UNet2DConditionModel) -> dict[str, Any]:
    """One that mixes the halves of a batch, as those do that let one picture attend to another."""

    def mix(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        assert len(hidden_states) == 2
        return hidden_states.flip(0)

    unet.set_attn_processor(mix)
    return {}


def with_hooks(unet: UNet2DConditionModel) -> dict[str, Any]:
    def check(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert len(args[0]) == 2

    for module in (unet.conv_in, *unet.down_blocks.modules()):
        if not isinstance(module, nn.ModuleList):
            module.register_forward_pre_hook(check)
    return {}


@pytest.mark.parametrize(
    "arrange", [with_masks, with_residuals, with_sizes, with_freeu, with_slices, with_a_processor, with_hooks]
)
def test_with_everything_that_belongs_to_texts(arrange: Callable[[UNet2DConditionModel], dict[str, Any]]) -> None:
    unet = make(**SDXL if arrange is with_sizes else {})
    x, text = inputs(1, 2)
    others = arrange(unet)
    assert near(unet(x, 500, text, **others).sample, unet(x.repeat(2, 1, 1, 1), 500, text, **others).sample)


def test_times_that_differ_are_not_shared() -> None:
    unet = make()
    x, text = inputs(1, 2)
    times = torch.tensor([10, 900])
    assert near(unet(x, times, text).sample, unet(x.repeat(2, 1, 1, 1), times, text).sample)


def test_what_comes_before_the_text_is_computed_once() -> None:
    unet = make()
    x, text = inputs(1, 2)
    first = next(module for module in unet.modules() if isinstance(module, BasicTransformerBlock))
    rows: list[int] = []
    first.attn1.to_q.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))

    def flops(samples: Tensor) -> int:
        return count_flops(lambda: unet(samples, 500, text))

    assert flops(x) == flops(x.repeat(2, 1, 1, 1))  # somebody looks on
    assert rows == [2, 2]
    first.attn1.to_q._forward_hooks.clear()
    assert flops(x) < flops(x.repeat(2, 1, 1, 1))
