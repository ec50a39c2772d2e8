"""`--lora PATH:SCALE`: taken apart, checked before a model opens, and put on the pipeline."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from ..core.errors import LeanError


def path_and_scale(text: str, flag: str = "--lora") -> tuple[str, float]:
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
        raise typer.BadParameter(f"{text!r}: {number} is not how much it weighs; write PATH:0.8.", param_hint=flag)
    return path, scale


def check(texts: Collection[str]) -> None:
    """typer.BadParameter for files that are not there or are no LoRA; their headers are read."""
    if not texts:
        return
    from ..lora.find import find_lora
    from ..lora.read import read_lora

    for text in texts:
        try:
            read_lora(find_lora(path_and_scale(text)[0]))
        except (LeanError, OSError) as error:
            raise typer.BadParameter(str(error), param_hint="--lora") from error


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
