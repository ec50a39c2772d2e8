"""The UNet by itself: what it refuses, and that it leaves its inputs alone. Its numbers: tests/parity."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from leandiffusion.core.errors import ConfigError
from leandiffusion.modules.transformer import Attention
from leandiffusion.modules.unet import UNet2DConditionModel

TINY: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12, "attention_head_dim": 2,
}  # fmt: skip
SDXL: dict[str, Any] = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 5 + 24,
}  # fmt: skip
UNSUPPORTED: dict[str, Any] = {  # every key that other architectures vary, with a value that published ones have
    "center_input_sample": True,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "only_cross_attention": True,
    "downsample_padding": 0,
    "mid_block_scale_factor": 0.5,
    "dropout": 0.1,
    "act_fn": "gelu",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "num_attention_heads": 8,
    "dual_cross_attention": True,
    "class_embed_type": "timestep",
    "addition_embed_type": "text_image",
    "num_class_embeds": 1000,
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 2.0,
    "time_embedding_type": "fourier",
    "time_embedding_act_fn": "silu",
    "timestep_post_act": "silu",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "attention_type": "gated",
    "class_embeddings_concat": True,
    "mid_block_only_cross_attention": True,
    "cross_attention_norm": "group_norm",
    "addition_embed_type_num_heads": 32,
}


def make(**config: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY | config).eval()


def inputs(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, height, width), torch.tensor([7, 900]), torch.randn(2, 5, 12)


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_unsupported_values_are_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"UNet2DConditionModel does not support {key}={UNSUPPORTED[key]!r}: only"):
        make(**{key: UNSUPPORTED[key]})


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"the config key cross_attn_dim=3.* mean 'cross_attention_dim"):
        UNet2DConditionModel.from_config({**TINY, "cross_attn_dim": 3})
    noted = UNet2DConditionModel.from_config({**TINY, "_class_name": "UNet2DConditionModel", "_name_or_path": "x"})
    assert noted.config == make().config


def test_a_number_is_no_config() -> None:
    with pytest.raises(ConfigError, match=r"found 3\. .* UNet2DConditionModel\.from_pretrained"):
        UNet2DConditionModel.from_config(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"attention_head_dim": 3}, r"8 channels do not divide into 3 heads \(attention_head_dim.*a multiple"),
        ({"attention_head_dim": 0}, "attention_head_dim=0 must be one whole number from 1"),
        ({"attention_head_dim": (2, 5)}, "16 channels do not divide into 5 heads"),
        ({"attention_head_dim": (2, 2, 2)}, r"attention_head_dim=\(2, 2, 2\) must be .* each of the 2 levels"),
        ({"cross_attention_dim": None}, "cross_attention_dim=None must be one whole number"),
        ({"layers_per_block": [1, 1.5]}, "layers_per_block="),
        ({"transformer_layers_per_block": [[1, 2], 1]}, "transformer_layers_per_block="),
        ({"reverse_transformer_layers_per_block": [1]}, r"reverse_transformer_layers_per_block=\[1\] must be"),
        ({"down_block_types": ("DownBlock2D",)}, "down_block_types=.*expected 2 of 'DownBlock2D' or 'CrossAttnDown"),
        ({"up_block_types": ("UpBlock2D", "AttnUpBlock2D")}, "up_block_types=.*expected 2 of"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim and projection_class_embeddings_input_dim"),
    ],
)
def test_impossible_configs(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(**config)


def test_heads_matter_only_where_there_is_attention() -> None:
    """SDXL's first level has none; its number of heads means nothing."""
    types = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    assert make(attention_head_dim=(3, 4), **types).config.attention_head_dim == (3, 4)


@torch.no_grad()
def test_ways_to_say_the_same() -> None:
    unet, (x, t, text) = make(), inputs()
    expected = unet(x, t, text).sample
    assert expected.shape == x.shape
    assert torch.equal(unet(x, t, encoder_hidden_states=text, return_dict=False)[0], expected)
    assert torch.equal(unet(x, t.float(), text, cross_attention_kwargs={})[0], expected)
    for same in (7, 7.0, torch.tensor(7), torch.tensor([7])):
        assert torch.equal(unet(x, same, text).sample, unet(x, torch.tensor([7, 7]), text).sample)
    assert not torch.allclose(unet(x, 7, text).sample[1], expected[1], atol=1e-4), "time matters"
    assert not torch.allclose(unet(x, t, text.flip(0)).sample, expected, atol=1e-4), "words matter"


def test_inputs_are_left_alone_and_gradients_do_not_change_the_result() -> None:
    """Where nobody differentiates, activations overwrite their inputs: never the caller's. Equal up to float32 sums."""
    unet, given = make(), inputs(9, 7)
    kept = [each.clone() for each in given]
    residuals = [torch.randn(2, channels, h, w) for channels, h, w in ((8, 9, 7), (8, 9, 7), (8, 5, 4), (16, 5, 4))]
    kept_residuals = [each.clone() for each in residuals]
    added: dict[str, Any] = {"mid_block_additional_residual": residuals[3]}
    added["down_block_additional_residuals"] = residuals
    with torch.no_grad():
        plain = unet(*given, **added).sample
    differentiable = unet(*given, **added).sample
    differentiable.square().mean().backward()
    torch.testing.assert_close(plain, differentiable, rtol=1e-5, atol=1e-6)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(residuals, kept_residuals, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("linear", [False, True])
def test_channels_last(linear: bool) -> None:
    """The same picture within float32 rounding, whatever the order in memory."""
    unet, (x, t, text) = make(use_linear_projection=linear), inputs()
    expected = unet(x, t, text).sample
    unet = unet.to(memory_format=torch.channels_last)
    assert unet.conv_out.weight.stride() == (72, 1, 24, 8)
    torch.testing.assert_close(unet(x, t, text).sample, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_it_would_ignore_is_refused() -> None:
    unet, (x, t, text) = make(), inputs()
    for name in inspect.signature(UNet2DConditionModel.forward).parameters:
        if name in ("class_labels", "attention_mask", "down_intrablock_additional_residuals"):
            with pytest.raises(ConfigError, match=f"makes no use of {name}"):
                unet(x, t, text, **{name: torch.zeros(2)})
    with pytest.raises(ConfigError, match=r"no attention processor .* takes scale \(cross_attention_kwargs\)"):
        unet(x, t, text, cross_attention_kwargs={"scale": 0.5})
    with pytest.raises(ConfigError, match="makes no use of timestep_cond"):
        unet(x, t, text, timestep_cond=torch.zeros(2, 8))
    with pytest.raises(ConfigError, match=r"makes no use of added_cond_kwargs\['text_embeds'\]: leave out"):
        unet(x, t, text, added_cond_kwargs={"text_embeds": torch.zeros(2, 5), "time_ids": None})
    added = {"text_embeds": torch.zeros(2, 5), "time_ids": torch.zeros(2, 6), "image_embeds": torch.zeros(2, 5)}
    with pytest.raises(ConfigError, match=r"makes no use of added_cond_kwargs\['image_embeds'\]: leave out"):
        make(**SDXL)(x, t, text, added_cond_kwargs=added)


@torch.no_grad()
def test_residuals_of_a_controlnet_come_complete() -> None:
    """diffusers takes those for the down path alone as an adapter's, and ignores the middle one alone."""
    unet, (x, t, text) = make(), inputs()
    skips = [torch.zeros(2, 8, 8, 8), torch.zeros(2, 8, 8, 8), torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 4, 4)]
    for alone in ({"down_block_additional_residuals": skips}, {"mid_block_additional_residual": skips[-1]}):
        with pytest.raises(ConfigError, match="pass both"):
            unet(x, t, text, **alone)
    with pytest.raises(ConfigError, match="3 down_block_additional_residuals for the 4 skip connections"):
        unet(x, t, text, down_block_additional_residuals=skips[1:], mid_block_additional_residual=skips[-1])


@torch.no_grad()
def test_text_and_sizes_are_asked_for() -> None:
    unet, (x, t, text) = make(**SDXL), inputs()
    with pytest.raises(ConfigError, match="added_cond_kwargs with text_embeds and time_ids"):
        unet(x, t, text)
    with pytest.raises(ConfigError, match="added_cond_kwargs with time_ids"):
        unet(x, t, text, added_cond_kwargs={"text_embeds": torch.zeros(2, 5)})
    added = {"text_embeds": torch.randn(2, 5), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(2, 1)}
    small = {**added, "time_ids": added["time_ids"] / 4}
    difference = unet(x, t, text, added_cond_kwargs=added).sample - unet(x, t, text, added_cond_kwargs=small).sample
    assert difference.abs().max() > 1e-4, "sizes matter"


@pytest.mark.parametrize(("upcast", "expected"), [(True, torch.float32), (False, torch.bfloat16)])
@torch.no_grad()
def test_upcast_attention_runs_in_float32(upcast: bool, expected: torch.dtype) -> None:
    """SD2.1's scores overflow float16. What goes in and comes out keeps its dtype."""
    seen: list[torch.dtype] = []
    unet = make(upcast_attention=upcast).bfloat16()
    for layer in (module for module in unet.modules() if isinstance(module, Attention)):
        layer.backend = _Noting(layer.backend, seen)  # type: ignore[assignment]
    x, t, text = inputs()
    assert unet(x.bfloat16(), t, text.bfloat16()).sample.dtype == torch.bfloat16
    assert set(seen) == {expected}
    assert len(seen) == 2 * 4, "self- and cross-attention of one block down, one in the middle, two up"


class _Noting:
    def __init__(self, inner: Any, seen: list[torch.dtype]) -> None:
        self.inner, self.seen = inner, seen

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.seen += {q.dtype, k.dtype, v.dtype}
        return self.inner(q, k, v)


def test_what_training_with_averaged_weights_notes_is_kept() -> None:
    """diffusers' EMAModel saves its settings into the UNet's config.json."""
    notes = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 7, "power": 0.6667,
             "update_after_step": 0, "use_ema_warmup": False}  # fmt: skip
    from leandiffusion.weights.build import build_empty

    config = build_empty(lambda: UNet2DConditionModel.from_config({**notes})).config
    assert {key: config[key] for key in notes} == notes


@pytest.mark.parametrize("depth", [64, [64] * 8, [[64] * 8] * 8], ids=["one", "levels", "resnets"])
def test_more_blocks_than_can_be_built(depth: Any) -> None:
    """Each number is possible alone; together they would take minutes to build, before a weight is looked at."""
    levels: dict[str, Any] = {"block_out_channels": [32] * 8, "down_block_types": ["CrossAttnDownBlock2D"] * 8,
                              "up_block_types": ["CrossAttnUpBlock2D"] * 8}  # fmt: skip
    with pytest.raises(ConfigError, match="4096 transformer blocks"):
        UNet2DConditionModel(**levels, layers_per_block=8, transformer_layers_per_block=depth)
