"""How much an adapter weighs in each layer: one number, or numbers by block of the UNet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..core.errors import ConfigError

Weights = float | Mapping[str, float]
"""One number for all layers, or numbers by part of the UNet, such as `up_blocks.1.attentions.0`; 1 elsewhere."""


def weight_in(layer: str, weights: Weights, otherwise: float = 1.0) -> float:
    """What the adapter weighs in that layer; `otherwise` where the numbers by block do not say."""
    if not isinstance(weights, Mapping):
        return weights
    return next((weight for part, weight in weights.items() if layer.startswith(f"{part}.")), otherwise)


def check_weight(value: Any, what: str) -> float:
    """A finite number; None stands for 1. ConfigError for anything else."""
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{what}={value!r} is not how much an adapter weighs: give a number, such as 0.8.")
    return float(value)


def by_block(unet: nn.Module, given: Any, name: str) -> Weights:
    """What `set_adapters` is given for the UNet -> weights of its layers.

    A number, or `{"down": …, "mid": …, "up": …}`, each a number, and below 'down' and 'up' `{"block_0": …}` with a
    number, or a list of one for each of the block's transformers. They concern transformers, as in diffusers: what is
    left out weighs 1, and so do layers elsewhere. ConfigError for parts that this UNet has not.
    """
    if not isinstance(given, Mapping):
        return check_weight(given, f"the weight of {name!r}")
    parts = _transformers(unet)
    if unknown := [key for key in given if key not in parts]:
        raise ConfigError(f"weights of {name!r} by block: {unknown[0]!r} is none of {', '.join(parts)}.")
    weights: dict[str, float] = {}
    for way, value in given.items():
        blocks = parts[way]
        if not isinstance(value, Mapping):
            value = dict.fromkeys(blocks, value)
        if unknown := [block for block in value if block not in blocks]:
            raise ConfigError(
                f"weights of {name!r}: {way} has no {unknown[0]!r} with transformers in this UNet; it has "
                f"{', '.join(blocks) or 'none'}."
            )
        for block, each in value.items():
            weights |= _each(blocks[block], each, f"the weight of {name!r} in {way}.{block}")
    return weights


def _each(transformers: list[str], value: Any, what: str) -> dict[str, float]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    values = values * len(transformers) if len(values) == 1 else values
    if len(values) != len(transformers):
        raise ConfigError(
            f"{what}: {len(values)} numbers for {len(transformers)} transformers. Give one for each, or one."
        )
    return {part: check_weight(one, what) for part, one in zip(transformers, values, strict=True)}


def _transformers(unet: nn.Module) -> dict[str, dict[str, list[str]]]:
    """The UNet's transformers by direction and block: {'down': {'block_0': ['down_blocks.0.attentions.0', …]}, …}."""
    found: dict[str, dict[str, list[str]]] = {"down": {}, "mid": {}, "up": {}}
    for way in ("down", "up"):
        for number, block in enumerate(getattr(unet, f"{way}_blocks")):
            count = len(getattr(block, "attentions", None) or ())
            if count:
                names = [f"{way}_blocks.{number}.attentions.{i}" for i in range(count)]
                found[way][f"block_{number}"] = names
    count = len(getattr(getattr(unet, "mid_block", None), "attentions", None) or ())
    if count:
        found["mid"]["block"] = [f"mid_block.attentions.{i}" for i in range(count)]
    return found
