"""Which values an option takes, whatever the others are. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..core.wording import show
from ..pictures.ranges import RANGES
from .wrong import OptionError

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Of weights: short names, and torch's."""

MAX_SEED = RANGES["seed"][1]

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
    check_range(name, side, of="width")


def check_range(name: str, value: float, of: str | None = None) -> None:
    """OptionError unless it is in the range of the setting `of`, by default the one that is called `name`."""
    of = of or name
    least, most = RANGES[of]
    if not least <= value <= most:  # as NaN is not
        wrong, such = _SAID.get(of, ("out of range", ""))
        shown = f"{value:g}" if isinstance(value, float) else show(value)
        raise OptionError(
            name, "{value} is {wrong}: use {least} to {most}{such}.", value=shown, wrong=wrong, least=least, most=most,
            such=such,
        )  # fmt: skip


def check_dtype(name: str, dtype: str) -> None:
    """OptionError unless it is 'bf16', 'bfloat16' and so on, in whatever case."""
    if DTYPES.get(dtype.lower(), dtype.lower()) not in DTYPES.values():
        known = ", ".join(f"{short} ({long})" for short, long in DTYPES.items())
        raise OptionError(name, "{dtype} is not a dtype of weights. Known: {known}.", dtype=show(dtype), known=known)


def _check_strength(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise OptionError(
            name, "{value:g} is not a strength: use a number above 0 and up to 1, where 1 draws all anew.", value=value
        )


_SAID: Mapping[str, tuple[str, str]] = {
    "guidance_scale": ("not a guidance scale", ", such as 7.5"),
    "control_guidance_start": ("not a share of the steps", ""),
    "control_guidance_end": ("not a share of the steps", ""),
    "pag_scale": ("not a scale of perturbed attention", ", such as 3"),
}
"""What a number out of range is, and what to use for example."""

_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(RANGES, check_range),
    "width": check_side,
    "height": check_side,
    "dtype": check_dtype,
    "strength": _check_strength,
}
