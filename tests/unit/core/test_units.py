"""Bytes and seconds, read and written."""

from __future__ import annotations

import pytest

from leandiffusion.core.errors import ConfigError
from leandiffusion.core.units import format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2**31), ("3.2 GB", 3_200_000_000), (" 512mb ", 512_000_000), ("1.5KiB", 1536), ("7", 7), ("7b", 7),
        (1024, 1024), ("1TiB", 2**40), ("0", 0),
    ],
)  # fmt: skip
def test_parse_bytes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "2 parsecs", "1e9", "1.2.3GB", "NaN", "2GiB more"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size: write a number and a unit"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1536, "1.5 KiB"), (999.7 * 1024, "0.976 MiB"),
        (3.2 * 2**30, "3.2 GiB"), (1.5 * 2**40, "1.5 TiB"), (5000 * 2**40, "5000 TiB"), (-(2**20), "-1 MiB"),
    ],
)  # fmt: skip
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"), (0.00025, "0.25 ms"), (0.85, "850 ms"), (0.9994, "999 ms"), (0.9999, "1 s"), (3.214, "3.21 s"),
        (59.9, "59.9 s"), (59.97, "1 min 00 s"), (125.4, "2 min 05 s"), (7200, "120 min 00 s"),
    ],
)  # fmt: skip
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
