"""Constructor settings, checked before anything is built: types against the annotations, sizes against limits.

A config.json may come from anywhere. What is annotated `int` must be a whole number, and where the name says what it
counts, within the limits below: far above every published model, and low enough to bound the memory and time of
building.
"""

from __future__ import annotations

import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .errors import ConfigError
from .wording import show

MOST_TRAINING_STEPS = 100_000
_MOST_VALUES = MOST_TRAINING_STEPS  # of one list
_LONGEST_TEXT = 1000
_MOST_FLOAT = 3.4e38  # about float32's largest


class Limits(NamedTuple):
    """The least and the most that a whole number may be, and how many of them a list may hold."""

    low: int
    high: int
    count: int = 32


_WIDTH, _CHANNELS, _SIDE = Limits(1, 65_536), Limits(1, 16_384), Limits(1, 65_536)
_ANY = Limits(-(2**63), 2**63 - 1, _MOST_VALUES)

LIMITS: Mapping[str, Limits] = {
    # UNet and VAE
    "sample_size": _SIDE,
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "latent_channels": _CHANNELS,
    "block_out_channels": _CHANNELS,
    "norm_num_groups": _CHANNELS,
    "layers_per_block": Limits(1, 32),
    "cross_attention_dim": _WIDTH,
    "transformer_layers_per_block": Limits(0, 64),
    "reverse_transformer_layers_per_block": Limits(0, 64),
    "attention_head_dim": _CHANNELS,
    "time_embedding_dim": _WIDTH,
    "time_cond_proj_dim": _WIDTH,
    "addition_time_embed_dim": _WIDTH,
    "projection_class_embeddings_input_dim": _WIDTH,
    # CLIP
    "vocab_size": Limits(1, 2**20),
    "hidden_size": _CHANNELS,
    "intermediate_size": _WIDTH,
    "projection_dim": _CHANNELS,
    "num_hidden_layers": Limits(0, 256),
    "num_attention_heads": _CHANNELS,
    "max_position_embeddings": _WIDTH,
    "num_channels": _CHANNELS,
    "image_size": _SIDE,
    "patch_size": _SIDE,
    "size": _SIDE,
    "crop_size": _SIDE,
    # schedulers
    "num_train_timesteps": Limits(1, MOST_TRAINING_STEPS),
    "original_inference_steps": Limits(1, MOST_TRAINING_STEPS),
    # tokenizers
    "model_max_length": Limits(2, 65_536),
}


FLOAT_LIMITS: Mapping[str, tuple[float, float]] = {
    "beta_start": (1e-7, 10),
    "beta_end": (0, 10),
    "norm_eps": (0, 1),
    "layer_norm_eps": (0, 1),
    "initializer_factor": (0, 1000),
    "rescale_factor": (0, 1000),
}


def check_settings(init: Callable[..., Any], name: str, values: Mapping[str, Any]) -> None:
    """ConfigError unless each of `values` has the type that the constructor `init` annotates, within LIMITS.

    Whole numbers pass as floats, None and 0 and 1 as switches, lists and arrays as sequences. Floats must be finite,
    unless the default is not. What is annotated with other classes is not checked.
    """
    hints, defaults = _annotations(init)
    for key, value in values.items():
        limits = LIMITS.get(key, _ANY)
        hint = hints.get(key, Any)
        if not _fits(value, hint, limits, not math.isfinite(_float(defaults.get(key)))):
            raise ConfigError(f"{name}: {key}={show(value)} must be {_expected(hint, limits)}.")
        low, high = FLOAT_LIMITS.get(key, (-math.inf, math.inf))
        if key in FLOAT_LIMITS and not low <= value <= high:
            raise ConfigError(f"{name}: {key}={show(value)} must be a number from {low} to {high}.")


@functools.cache
def _annotations(init: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    import inspect

    defaults = {key: each.default for key, each in inspect.signature(init).parameters.items()}
    return typing.get_type_hints(init), defaults


def _float(value: Any) -> float:
    return value if isinstance(value, float) else 0.0


def _fits(value: Any, hint: Any, limits: Limits, infinite: bool) -> bool:
    origin = typing.get_origin(hint) or hint
    if origin is types.UnionType or origin is typing.Union:
        return any(_fits(value, each, limits, infinite) for each in typing.get_args(hint))
    if origin is types.NoneType:
        return value is None
    if origin is bool:
        return value is None or (isinstance(value, numbers.Real) and value in (0, 1)) or _is_numpy_bool(value)
    if origin is int:
        return _is_number(value, numbers.Integral) and limits.low <= value <= limits.high
    if origin is float:
        return _is_number(value, numbers.Real) and _in_range(value, infinite)
    if origin is str:
        return isinstance(value, str) and len(value) <= _LONGEST_TEXT
    if origin in (list, tuple, Sequence):
        return _fits_sequence(value, typing.get_args(hint), limits, infinite)
    if origin is Mapping:
        inner = (typing.get_args(hint) or (str, Any))[1]
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and _fits(each, inner, limits, infinite) for key, each in value.items()
        )
    return True


def _fits_sequence(value: Any, inner: tuple[Any, ...], limits: Limits, infinite: bool) -> bool:
    if hasattr(value, "tolist") and hasattr(value, "shape"):  # an array or tensor of numbers
        return len(value.shape) == 1 and len(value) <= _MOST_VALUES
    if not isinstance(value, list | tuple) or len(value) > (limits.count if int in inner else _MOST_VALUES):
        return False
    return not inner or all(_fits(each, inner[0], limits, infinite) for each in value)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _in_range(value: Any, infinite: bool) -> bool:
    """Within what torch takes beside float32 tensors: int64 where whole, else float32's range."""
    if isinstance(value, numbers.Integral):
        return abs(int(value)) < 2**63
    return abs(value) <= _MOST_FLOAT or (infinite and math.isinf(value))


def _is_numpy_bool(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_") and type(value).__module__ == "numpy"


def _expected(hint: Any, limits: Limits) -> str:
    origin = typing.get_origin(hint) or hint
    if origin is types.UnionType or origin is typing.Union:
        return " or ".join(_expected(each, limits) for each in typing.get_args(hint))
    if origin is int:
        if limits is _ANY:
            return "one whole number"
        return f"one whole number from {limits.low} to {limits.high}"
    if origin in (list, tuple, Sequence):
        inner = typing.get_args(hint)
        most = limits.count if int in inner else _MOST_VALUES
        return f"a list, each {_expected(inner[0], limits)}, of at most {most}" if inner else "a list"
    plain = {
        float: f"a finite number, up to {_MOST_FLOAT}, or 2**63 where whole",
        bool: "true or false",
        str: "a text",
        types.NoneType: "null",
    }
    return plain.get(origin, "named settings")
