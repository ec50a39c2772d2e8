"""Bytes and seconds as people write them."""

from __future__ import annotations

import re

from .errors import ConfigError

_BYTE_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTE_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(text: str | int) -> int:
    """'2GiB', '3.2 GB', '512MB' or a plain number of bytes -> bytes. ConfigError for anything else or below zero."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if not match or (match[2].lower() or "b") not in _BYTE_UNITS:
        raise ConfigError(f"{text!r} is not a size: write a number and a unit, such as '2GiB', '3.2GB' or '512MB'.")
    return int(float(match[1]) * _BYTE_UNITS[match[2].lower() or "b"])


def format_bytes(count: float) -> str:
    """Bytes -> '3.2 GiB'; binary units, three significant digits."""
    unit, *larger = "B", "KiB", "MiB", "GiB", "TiB"
    while abs(count) >= 999.5 and larger:
        count, unit, *larger = count / 1024, *larger
    return f"{count:.0f} B" if unit == "B" else f"{_three_digits(count)} {unit}"


def format_seconds(seconds: float) -> str:
    """Seconds -> '850 ms', '3.21 s', '2 min 05 s'."""
    if seconds < 0.9995:
        return f"{_three_digits(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _three_digits(value: float) -> str:
    """'0.123', '12.3', '123', and '1234' rather than '1.23e+03'."""
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.0f}"
