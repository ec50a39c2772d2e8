"""Memory-efficient attention against attention that keeps its scores, by size of the picture."""

from __future__ import annotations

from collections.abc import Sequence

from ...device.host import is_host
from ..workload import Row, Workload
from . import suites
from .base import EFFICIENT, SCORES, Suite

SIZES = (256, 512, 1024, 2048)
"""Sides of the pictures in pixels."""

PUBLISHED_RATES = (
    ("T4", 3.5, 5.5),
    ("RTX 3060", 4.6, 7.8),
    ("A10G", 8.88, 15.6),
    ("RTX A6000", 11.7, 21.09),
    ("TITAN RTX", 12.51, 18.22),
    ("A100-40GB", 18.6, 29.0),
    ("A100-80GB", 18.7, 29.5),
)
"""Steps per second before and after memory-efficient attention: 512 px, float16."""


def rows(workload: Workload, declared: Sequence[Row]) -> list[Row]:
    """A pair for each size; what a single technique declares has no size, and so no place here."""
    found = []
    for size in SIZES:
        slow = size > 1024 and is_host(workload.device)
        asked = "a step of this size takes minutes on a CPU" if slow else ""
        found += [
            Row(f"{size}_before", f"{size} px, scores kept", enable=SCORES, size=size, pictures=False, asked=asked),
            Row(f"{size}_after", f"{size} px, memory-efficient", enable=EFFICIENT, adds="attention_backend",
                size=size, pictures=False, asked=asked),
        ]  # fmt: skip
    return found


def _published_rates() -> str:
    pairs = ", ".join(f"{gpu} {before:g} → {after:g}" for gpu, before, after in PUBLISHED_RATES)
    return f"Published for 512 px in float16, it/s: {pairs}."


ATTENTION = suites.add(
    "attention",
    Suite(
        name="attention",
        title="Memory-efficient attention, before and after",
        about="Steps per second before and after memory-efficient attention, from 256 to 2048 pixels.",
        example="512_before,512_after",
        rows=rows,
        columns=(("it/s before", "it/s after", "× faster", "peak before", "peak after", "× peak"),),
        legend={"it/s after": _published_rates()},
        plots=("attention",),
        own_sizes=True,
    ),
)
