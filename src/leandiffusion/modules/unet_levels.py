"""A UNet's config, read level by level."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.config import Config
from ..core.errors import ConfigError
from .unet_blocks import Level

MOST_BLOCKS = 512  # on one side of the UNet


def levels_of(config: Config) -> list[Level]:
    """What each level is made of, from the widest map to the smallest. ConfigError names the key that does not fit."""
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
