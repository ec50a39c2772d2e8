"""The UNet's deep feature: what a forward keeps, and what one that is given it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from leandiffusion.core.errors import ConfigError
from leandiffusion.modules.deep import DeepFeature
from leandiffusion.modules.unet import UNet2DConditionModel

CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "two resnets": {"layers_per_block": 2},
    "no middle": {"mid_block_type": None},
    "sdxl": {"addition_embed_type": "text_time", "addition_time_embed_dim": 4,
             "projection_class_embeddings_input_dim": 5 + 24},
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def make(kind: str = "sd1") -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {
        "sample_size": 8, "block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12, "attention_head_dim": 2,
    }  # fmt: skip
    return UNet2DConditionModel(**config | CONFIGS[kind]).eval()


def inputs(kind: str = "sd1", seed: int = 0, size: tuple[int, int] = (8, 8), rows: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    given = {
        "sample": torch.randn(rows, 4, *size, generator=generator), "timestep": torch.tensor(500 - seed),
        "encoder_hidden_states": torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(9)),
    }  # fmt: skip
    if kind == "sdxl":
        given["added_cond_kwargs"] = {"text_embeds": torch.ones(2, 5), "time_ids": torch.ones(2, 6)}
    return given


def residuals(unet: UNet2DConditionModel, size: int = 8) -> dict[str, Any]:
    """A ControlNet's outputs for every skip connection and the middle."""
    shapes: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda m, i, o: shapes.extend(o[1])) for block in unet.down_blocks]
    unet(**inputs())
    for hook in hooks:
        hook.remove()
    skips = [torch.zeros(2, 8, size, size), *map(torch.zeros_like, shapes)]
    generator = torch.Generator().manual_seed(4)
    made = [torch.randn(skip.shape, generator=generator) for skip in [*skips, shapes[-1]]]
    return {"down_block_additional_residuals": made[:-1], "mid_block_additional_residual": made[-1]}


def every_depth(unet: UNet2DConditionModel) -> range:
    return range(1, unet.skip_count + 1)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=["even", "odd"])
def test_its_own_feature_gives_the_same_prediction(kind: str, size: tuple[int, int]) -> None:
    """Whatever the depth, to the last bit: keeping changes nothing, and what is left out has the same numbers."""
    unet, given = make(kind), inputs(kind, size=size)
    plain = unet(**given).sample
    for depth in every_depth(unet):
        deep = DeepFeature(depth)
        assert torch.equal(unet(**given, deep=deep).sample, plain)
        assert deep.value is not None
        assert torch.equal(unet(**given, deep=deep).sample, plain)


def test_one_sample_for_two_texts() -> None:
    """As under classifier-free guidance, and with a feature of both halves. 1e-5: sums in another order."""
    unet, given = make(), inputs(rows=1)
    doubled = given | {"sample": given["sample"].repeat(2, 1, 1, 1)}
    expected = unet(**doubled).sample
    for depth in every_depth(unet):
        deep = DeepFeature(depth)
        for _ in range(2):
            torch.testing.assert_close(unet(**given, deep=deep).sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_freeu", [False, True], ids=["plain", "FreeU"])
@pytest.mark.parametrize("with_control", [False, True], ids=["alone", "ControlNet"])
def test_the_outermost_part_is_computed_anew(with_freeu: bool, with_control: bool) -> None:
    """The whole network is the reference: its deep feature replaced by the kept one where that enters."""
    unet = make("two resnets")
    extra = residuals(unet) if with_control else {}
    if with_freeu:
        unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    for depth in every_depth(unet):
        deep = DeepFeature(depth)
        unet(**inputs(seed=0), **extra, deep=deep)
        expected = _spliced(unet, depth, deep.value, inputs(seed=1) | extra)
        assert torch.equal(unet(**inputs(seed=1), **extra, deep=deep).sample, expected)


def _spliced(unet: UNet2DConditionModel, depth: int, value: Tensor | None, given: dict[str, Any]) -> Tensor:
    """A whole forward in which `value` takes the place of what enters the last `depth` resnets of the up path."""
    assert value is not None
    entered = [(block, i) for block in unet.up_blocks for i in range(len(block.resnets))][-depth]
    own = entered[0].resnets[entered[1]]
    freeu, width = entered[0].freeu, value.shape[1]

    def swap(module: Any, args: Any) -> Any:
        x, *rest = args
        skip = x[:, width:]
        backbone = value if freeu is None else freeu(value, skip)[0]  # the skip connection went through FreeU already
        return (torch.cat([backbone, skip], dim=1), *rest)

    hook = own.register_forward_pre_hook(swap)
    try:
        return unet(**given).sample
    finally:
        hook.remove()


def test_the_outermost_layers_alone_run() -> None:
    unet, ran = make("two resnets"), []
    deep = DeepFeature(2)
    unet(**inputs(), deep=deep)
    for name, module in unet.named_modules():
        if name.endswith(("conv1", "attn2", "conv_in", "conv_out", "mid_block", "sampler")):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    unet(**inputs(seed=1), deep=deep)
    assert ran == [
        "conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
        *(f"up_blocks.2.{name}" for i in (1, 2)
          for name in (f"resnets.{i}.conv1", f"attentions.{i}.transformer_blocks.0.attn2")),
        "conv_out",
    ]  # fmt: skip


def test_residuals_are_counted_in_every_forward() -> None:
    unet, deep = make(), DeepFeature(1)
    given = residuals(unet)
    given["down_block_additional_residuals"].pop()
    for feature in (None, deep, DeepFeature(1, torch.zeros(2, 8, 8, 8))):
        with pytest.raises(ConfigError, match="5 down_block_additional_residuals for the 6 skip connections"):
            unet(**inputs(), **given, deep=feature)
