"""Which values an option takes, whatever the others are. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..core.wording import show
from .wrong import OptionError

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Of weights: short names, and torch's."""

MAX_SEED = 2**63 - 1
MAX_STEPS = 100_000
MAX_SIDE = 65_536
MAX_GUIDANCE = 1e6
MAX_PADDING = 100_000
MAX_PAG_SCALE = 1000.0

_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: type(value) is str, "a text"),
    "int": (lambda value: type(value) is int, "a whole number"),
    "float": (lambda value: type(value) in (int, float), "a number"),
    "bool": (lambda value: type(value) is bool, "true or false"),
    "tuple[str, ...]": (
        lambda value: type(value) in (tuple, list) and all(type(each) is str for each in value), "a list of texts",
    ),
}  # fmt: skip


def normal(name: str, kind: str, value: Any) -> Any:
    """The value of the option `name` as it is kept: floats as floats, lists as tuples, dtypes by torch's name.

    `kind` is its type as `DrawingOptions` declares it. OptionError for a value of another type, or out of range.
    """
    if value is None:
        return None
    fits, words = _KINDS[kind.removesuffix(" | None")]
    if not fits(value):
        raise OptionError(name, "it is {value}, and has to be {words}.", value=show(value), words=words)
    if kind.startswith("float"):
        value = _as_float(name, value)
    elif kind.startswith("tuple"):
        value = tuple(value)
    check = _CHECKS.get(name)
    if check is not None:
        check(name, value)
    return DTYPES.get(value.lower(), value.lower()) if name == "dtype" else value


def _as_float(name: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        raise OptionError(name, "{value} is far out of range.", value=show(value)) from None


def parse_size(name: str, text: str) -> tuple[int, int]:
    """'512x768' or '512' -> (width, height) in pixels, both multiples of 8. OptionError for anything else."""
    match = re.fullmatch(r"(\d{1,9})(?:[xX×](\d{1,9}))?", text.strip())
    if not match:
        raise OptionError(name, "{text} is not a size: write WIDTHxHEIGHT in pixels, such as 512x768.", text=show(text))
    width, height = int(match[1]), int(match[2] or match[1])
    check_side(name, width)
    check_side(name, height)
    return width, height


def check_side(name: str, side: int) -> None:
    """OptionError unless a picture's side, in pixels, is a multiple of 8 from 8 up."""
    if side < 8 or side % 8:
        below = max(8, side // 8 * 8)
        near = str(below) if below > side else f"{below} or {below + 8}"
        raise OptionError(
            name, "{side} is not a multiple of 8 from 8 up, as pictures' sides must be: use {near}.",
            side=show(side), near=near,
        )  # fmt: skip
    _within(8, MAX_SIDE)(name, side)


def check_guidance(name: str, scale: float) -> None:
    """OptionError unless it is a finite number, 0 or more. Up to 1 there is no guidance."""
    if not math.isfinite(scale) or not 0 <= scale <= MAX_GUIDANCE:
        raise OptionError(name, "{scale:g} is not a guidance scale: use a number from 0 up, such as 7.5.", scale=scale)


def check_dtype(name: str, dtype: str) -> None:
    """OptionError unless it is 'bf16', 'bfloat16' and so on, in whatever case."""
    if DTYPES.get(dtype.lower(), dtype.lower()) not in DTYPES.values():
        known = ", ".join(f"{short} ({long})" for short, long in DTYPES.items())
        raise OptionError(name, "{dtype} is not a dtype of weights. Known: {known}.", dtype=show(dtype), known=known)


def _within(least: int, most: int) -> Callable[[str, int], None]:
    def check(name: str, value: int) -> None:
        if not least <= value <= most:
            raise OptionError(
                name, "{value} is out of range: use {least} to {most}.", value=show(value), least=least, most=most
            )

    return check


def _check_strength(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise OptionError(
            name, "{value:g} is not a strength: use a number above 0 and up to 1, where 1 draws all anew.", value=value
        )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise OptionError(name, "{value:g} is not a share of the steps: use 0 to 1.", value=value)


def _check_pag_scale(name: str, value: float) -> None:
    if not 0 <= value <= MAX_PAG_SCALE:
        raise OptionError(
            name, "{value:g} is not a scale of perturbed attention: use 0 to {most:g}, such as 3.", value=value,
            most=MAX_PAG_SCALE,
        )  # fmt: skip


_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "seed": _within(0, MAX_SEED),
    "steps": _within(1, MAX_STEPS),
    "width": check_side,
    "height": check_side,
    "guidance_scale": check_guidance,
    "dtype": check_dtype,
    "strength": _check_strength,
    "padding_mask_crop": _within(0, MAX_PADDING),
    "control_guidance_start": _check_share,
    "control_guidance_end": _check_share,
    "pag_scale": _check_pag_scale,
}
