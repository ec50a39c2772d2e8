"""Wrong arguments, found before anything is computed. Each message says the value, the rule and the fix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError

BothTexts = tuple[list[str], list[str]]
"""Texts for the first and for the second text encoder, equally many."""


def check_side(name: str, value: Any, multiple: int) -> None:
    """Pixels must be whole, positive and divisible by `multiple`, the pixels per latent."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"{name}={value!r}: pass a positive whole number of pixels, divisible by {multiple}.")
    if value % multiple:
        near = max(multiple, round(int(value) / multiple) * multiple)
        raise ConfigError(f"{name}={value} is not divisible by {multiple}: the nearest that is, is {near}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """ConfigError unless `value` is a whole number of `least` or more."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r}: pass a whole number of {least} or more.")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """ConfigError unless `value` is a number in [low, high]; NaN is in no range."""
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= float(value) <= high:
        raise ConfigError(f"{name}={value!r}: pass a number from {low:g} to {high:g}.")


def check_texts(name: str, value: Any) -> list[str] | None:
    """A text or a list of them as a list; None stays None. ConfigError for anything else, and for empty lists."""
    if value is None:
        return None
    texts = list(value) if isinstance(value, list | tuple) else [value]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong or not texts:
        found = f"a {type(wrong[0]).__name__}, {wrong[0]!r}" if wrong else "an empty list"
        raise ConfigError(f"{name} must be a text or a list of texts: found {found}.")
    return texts


def match_batch(name: str, texts: list[str] | None, batch: int) -> list[str]:
    """`texts` for a batch: none is empty texts, one serves all, otherwise one each. ConfigError for another count."""
    texts = [""] if texts is None else texts
    if len(texts) == 1:
        return texts * batch
    if len(texts) != batch:
        raise ConfigError(f"{name} has {len(texts)} texts for {batch} prompts: pass one text, or one for each prompt.")
    return texts


def check_negative(texts: Any, embeds: Any, batch: int) -> list[str] | None:
    """The negative texts of a batch, or None when embeddings (batch, T, C) stand for them. Not both."""
    given = check_texts("negative_prompt", texts)
    if embeds is None:
        return match_batch("negative_prompt", given, batch)
    if given is not None:
        raise _twice("negative_prompt", "negative_prompt_embeds")
    check_embeddings("negative_prompt_embeds", embeds, batch=batch)
    return None


def check_one_of(first: str, a: Any, second: str, b: Any) -> None:
    """Exactly one of two arguments that say the same thing."""
    if a is not None and b is not None:
        raise _twice(first, second)
    if a is None and b is None:
        raise ConfigError(f"nothing to draw: pass {first}, or {second} if you have encoded it yourself.")


def _twice(first: str, second: str) -> ConfigError:
    return ConfigError(f"{first} and {second} say the same thing in two ways: pass one of them.")


def check_same_shape(first: str, a: Tensor | None, second: str, b: Tensor | None) -> None:
    """Two tensors that are given together must agree in shape."""
    if a is not None and b is not None and a.shape != b.shape:
        raise ConfigError(f"{first} has shape {tuple(a.shape)} and {second} {tuple(b.shape)}: they must be equal.")


def check_generators(generator: Any, batch: int) -> None:
    """None, one torch.Generator, or a list with one for each picture."""
    generators = generator if isinstance(generator, list) else [generator]
    wrong = [g for g in generators if not isinstance(g, torch.Generator)]
    if wrong and generator is not None:
        raise ConfigError(
            f"generator must be a torch.Generator or a list of them, found {type(wrong[0]).__name__}: "
            "write generator=torch.Generator('cpu').manual_seed(42)."
        )
    if isinstance(generator, list) and len(generator) != batch:
        raise ConfigError(
            f"{len(generator)} generators for {batch} pictures: pass one generator, or a list with one for each "
            "picture (prompts times num_images_per_prompt)."
        )


def check_latents(latents: Any, shape: Sequence[int]) -> None:
    """Latents of the caller must have the shape that size and batch ask for."""
    if latents is not None and (not isinstance(latents, Tensor) or tuple(latents.shape) != tuple(shape)):
        found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ConfigError(f"latents must be a tensor of shape {tuple(shape)} for this size and batch, found {found}.")


def check_embeddings(name: str, value: Any, *, ndim: int = 3, batch: int | None = None) -> Tensor:
    """`value` if it is a tensor (B, T, C), or (B, C) for `ndim` 2, with B equal to `batch` where that is given."""
    axes = f"({'batch' if batch is None else batch}, {'tokens, ' * (ndim == 3)}channels)"
    if not isinstance(value, Tensor) or value.ndim != ndim or batch not in (None, len(value)):
        found = tuple(value.shape) if isinstance(value, Tensor) else "none" if value is None else type(value).__name__
        raise ConfigError(f"{name} must be a tensor {axes}, found {found}: pass what encode_prompt returns.")
    return value


def check_pair(name: str, value: Any) -> None:
    """A size or a corner: (height, width) or (top, left)."""
    numbers = list(value) if isinstance(value, tuple | list) else []
    if len(numbers) != 2 or not all(isinstance(n, Real) and not isinstance(n, bool) for n in numbers):
        raise ConfigError(f"{name}={value!r}: pass a pair of numbers, (height, width) or (top, left) in pixels.")


def check_both_texts(prompt: Any, prompt_2: Any, embeds: Any, pooled: Any) -> BothTexts | None:
    """The texts for both encoders, or None when embeddings (B, T, C) and pooled ones (B, P) stand for them."""
    check_one_of("prompt", prompt, "prompt_embeds", embeds)
    first, second = check_texts("prompt", prompt), check_texts("prompt_2", prompt_2)
    if first is not None:
        return first, match_batch("prompt_2", second or first, len(first))
    refuse({"prompt_2": prompt_2}, "prompt_embeds says the same thing: pass one of them")
    batch = len(check_embeddings("prompt_embeds", embeds))
    check_embeddings("pooled_prompt_embeds", pooled, ndim=2, batch=batch)
    return None


def check_both_negatives(negative: Any, negative_2: Any, embeds: Any, pooled: Any, batch: int) -> BothTexts | None:
    """The negative texts of both encoders, or None when embeddings stand for them."""
    first, second = check_negative(negative, embeds, batch), check_texts("negative_prompt_2", negative_2)
    if first is not None:
        return first, match_batch("negative_prompt_2", second or first, batch)
    refuse({"negative_prompt_2": second}, "negative_prompt_embeds says the same thing: pass one of them")
    check_embeddings("negative_pooled_prompt_embeds", pooled, ndim=2, batch=batch)
    return None


def check_names(what: str, names: Collection[str], known: Collection[str]) -> None:
    """ConfigError unless all `names` are known."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"{what} has {', '.join(map(repr, unknown))}: known are {', '.join(map(repr, known))}.")


def refuse(arguments: dict[str, Any], why: str) -> None:
    """ConfigError for arguments that are given although others make them pointless."""
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: {why}.")
