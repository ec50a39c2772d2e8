"""A UNet's config, read level by level, and the blocks that it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from ..core.config import Config
from ..core.errors import ConfigError
from .unet_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    Level,
    SharedSettings,
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)

# Keys of config.json that other architectures vary and this one does not.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1, 1.0),
    "dropout": (0, 0.0),
    "act_fn": ("silu", "swish"),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text_time"),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
    "addition_embed_type_num_heads": (64,),
}

MOST_BLOCKS = 512  # on one side of the UNet


def levels_of(config: Config) -> list[Level]:
    """The settings of each level, from the highest resolution to the lowest. ConfigError names the key that does not
    fit."""
    layers = per_level(config, "layers_per_block")
    columns = (
        list(config.block_out_channels),
        per_level(config, "attention_head_dim"),
        depths_of(config, "transformer_layers_per_block", layers),
        per_level(config, "cross_attention_dim"),
        layers,
    )
    return [Level(*row) for row in zip(*columns, strict=True)]


def per_level(config: Config, key: str) -> list[int]:
    """A config value as one entry per level. ConfigError for anything but whole numbers, or another count."""
    value, count = config[key], len(config.block_out_channels)
    values: list[int] = [value] * count if isinstance(value, int) else list(value or ())
    if len(values) != count or not all(isinstance(v, int) for v in values):
        raise ConfigError(f"{key}={value!r} must be one whole number, or one for each of the {count} levels.")
    return values


def depths_of(config: Config, key: str, layers: list[int]) -> list[tuple[int, ...]]:
    """Transformer blocks behind each of a level's resnets: one number for all, for each level, or for each resnet.

    ConfigError for anything else; numbers past the last resnet are not read.
    """
    value = config[key]
    if isinstance(value, int) or not any(isinstance(v, Sequence) and not isinstance(v, str) for v in value or ()):
        return _bounded(key, [(depth,) * n for depth, n in zip(per_level(config, key), layers, strict=True)])
    each = [[v] * n if isinstance(v, int) else list(v) for v, n in zip(value, layers, strict=False)]
    right = all(len(ds) >= n and all(type(d) is int for d in ds) for ds, n in zip(each, layers, strict=False))
    if len(value) != len(layers) or not right:
        raise ConfigError(
            f"{key}={value!r} must have an entry for each of the {len(layers)} levels: a whole number, or a list of "
            f"one for each of its resnets, which are {layers}."
        )
    return _bounded(key, [tuple(ds[:n]) for ds, n in zip(each, layers, strict=True)])


def _bounded(key: str, depths: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """ConfigError for more blocks than a machine builds in a few seconds, although each number is possible."""
    if (total := sum(map(sum, depths))) > MOST_BLOCKS:
        raise ConfigError(
            f"{key} and layers_per_block make {total} transformer blocks, expected at most {MOST_BLOCKS}: SDXL has 70."
        )
    return depths


def crosses(config: Config, key: str, plain: str, cross: str) -> list[bool]:
    """Block types -> which levels have cross-attention. ConfigError for other types or another count."""
    types, count = list(config[key]), len(config.block_out_channels)
    if len(types) != count or any(name not in (plain, cross) for name in types):
        raise ConfigError(
            f"UNet2DConditionModel does not support {key}={types!r}: expected {count} of {plain!r} or {cross!r}."
        )
    return [name == cross for name in types]


def down_levels(config: Config, levels: list[Level], shared: SharedSettings) -> Iterator[tuple[nn.Module, list[int]]]:
    """The blocks of the down path, and the channels of the skip connections that each makes."""
    crossing = crosses(config, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D")
    in_channels = levels[0].channels
    for i, (level, cross) in enumerate(zip(levels, crossing, strict=True)):
        last = i == len(levels) - 1
        kind = CrossAttnDownBlock2D if cross else DownBlock2D
        yield kind(in_channels, level, shared, last=last), [level.channels] * (level.layers + (not last))
        in_channels = level.channels


def build_down(config: Config, levels: list[Level], shared: SharedSettings) -> tuple[nn.ModuleList, list[int]]:
    """The down path, and the channels of every skip connection, conv_in's first."""
    blocks, skip_channels = nn.ModuleList(), [levels[0].channels]
    for block, channels in down_levels(config, levels, shared):
        blocks.append(block)
        skip_channels += channels
    return blocks, skip_channels


def build_middle(config: Config, level: Level, shared: SharedSettings) -> nn.Module | None:
    """The block at the lowest resolution; None where the config wants none."""
    kinds = {"UNetMidBlock2DCrossAttn": UNetMidBlock2DCrossAttn, "UNetMidBlock2D": UNetMidBlock2D}
    return None if config.mid_block_type is None else kinds[config.mid_block_type](level, shared)


def build_up(config: Config, levels: list[Level], skip_channels: list[int], shared: SharedSettings) -> nn.ModuleList:
    """The up path, which takes the skip connections of the down path, last first."""
    crossing = crosses(config, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D")
    layers = [level.layers + 1 for level in reversed(levels)]
    key = "transformer_layers_per_block"
    if config[f"reverse_{key}"] is not None:
        depths = depths_of(config, f"reverse_{key}", layers)
    elif isinstance(config[key], Sequence) and not all(isinstance(n, int) for n in config[key]):
        raise ConfigError(f"{key}={config[key]!r} differs within a level: give reverse_{key} for the up path.")
    else:
        depths = [level.depths[:1] * (level.layers + 1) for level in reversed(levels)]
    blocks, in_channels, skips = nn.ModuleList(), levels[-1].channels, list(skip_channels)
    for i, (level, cross, deep) in enumerate(zip(reversed(levels), crossing, depths, strict=True)):
        up = Level(level.channels, level.heads, deep, level.context_dim, level.layers + 1)
        kind = CrossAttnUpBlock2D if cross else UpBlock2D
        own_skips = [skips.pop() for _ in range(up.layers)]
        blocks.append(kind(in_channels, up, own_skips, shared, last=i == len(levels) - 1))
        in_channels = level.channels
    return blocks
