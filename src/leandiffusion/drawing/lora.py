"""LoRAs as PATH:SCALE: taken apart, checked before a model opens, and put on the pipeline."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..core.errors import LeanError
from .wrong import OptionError


def path_and_scale(text: str, field: str = "lora") -> tuple[str, float]:
    """'PATH:0.8' or 'PATH' -> the path and how much it weighs, 1 unless said.

    What is a file as it stands has no scale, and neither has a path whose last part is no number: C:\\loras\\x.
    """
    path, colon, number = text.rpartition(":")
    if not colon or not path or Path(text).expanduser().exists():
        return text, 1.0
    try:
        scale = float(number)
    except ValueError:
        return text, 1.0
    if not math.isfinite(scale):
        raise OptionError(
            field, "{text!r}: {number} is not how much it weighs; write PATH:0.8.", text=text, number=number
        )
    return path, scale


def check(texts: Collection[str]) -> None:
    """OptionError for files that are not there or are no LoRA; their headers are read."""
    if not texts:
        return
    from ..lora.find import find_lora
    from ..lora.read import read_lora

    for text in texts:
        path, _ = path_and_scale(text)
        try:
            read_lora(find_lora(path))
        except (LeanError, OSError) as error:
            raise OptionError("lora", "{reason}", reason=error) from error


def load(pipe: Any, texts: Collection[str]) -> None:
    """Load all of them, each at its scale."""
    names, scales = [], []
    for number, text in enumerate(texts):
        path, scale = path_and_scale(text)
        pipe.load_lora_weights(path, adapter_name=f"lora_{number}")
        names.append(f"lora_{number}")
        scales.append(scale)
    if names:
        pipe.set_adapters(names, scales)
