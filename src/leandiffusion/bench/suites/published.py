"""The table of figures published for Stable Diffusion 1.5, measured here; then what came after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..workload import Row, Workload
from . import suites
from .base import COST, EFFICIENT, SCORES, TIME, Enabled, Suite

AUTOTUNE: Enabled = (("cudnn_autotune", {}),)
CHANNELS_LAST: Enabled = (("channels_last", {}),)
TRACED: Enabled = (("traced_unet", {}),)

COMPILING = "compiling takes minutes per round"


def rows(workload: Workload, declared: Sequence[Row]) -> list[Row]:
    """Each row of the published table on top of the one before; then this library's defaults and best settings."""
    scores = SCORES + AUTOTUNE
    found = [
        Row("plain", "plain fp32", "float32", SCORES),
        Row("cudnn_autotune", "+ cuDNN autotuner", "float32", scores, adds="cudnn_autotune"),
        Row("half_precision", "+ half precision", "half", scores),
        Row("channels_last", "+ channels-last", "half", scores + CHANNELS_LAST, adds="channels_last"),
        Row("traced", "+ traced UNet", "half", scores + CHANNELS_LAST + TRACED, adds="traced_unet"),
        Row(
            "memory_efficient", "+ memory-efficient attention", "half",
            EFFICIENT + AUTOTUNE + CHANNELS_LAST + TRACED, adds="attention_backend",
        ),
        Row("defaults_fp32", "nothing switched on, fp32", "float32"),
        Row("defaults", "nothing switched on, half precision"),
        Row("best_fp32", "fp32, channels-last", "float32", AUTOTUNE + CHANNELS_LAST),
        Row("tf32", "fp32 weights, TF32 products", "float32", (("tf32", {}), *CHANNELS_LAST), adds="tf32"),
        Row(
            "compiled", "half precision, channels-last, compiled", "half",
            AUTOTUNE + CHANNELS_LAST + (("compile", {}),), adds="compile", asked=COMPILING,
        ),
        *declared,
    ]  # fmt: skip
    return found if workload.half != "float32" else [_without_half(row) for row in found]


def _without_half(row: Row) -> Row:
    """The row in float32 where nothing shall be halved; the rows that are about half precision say so."""
    asked = "half precision is switched off: --dtype fp32" if row.name in ("half_precision", "defaults") else row.asked
    return replace(row, asked=asked)


PUBLISHED = suites.add(
    "published",
    Suite(
        name="published",
        title="The published table, measured here",
        about="The published table, measured here: fp32, cuDNN autotuner, half precision, channels-last, traced, "
        "attention.",
        example="plain,half_precision",
        rows=rows,
        columns=(TIME, COST, ("50 steps", "× whole", "published")),
        legend={
            "published": "published: speed-up and seconds of 50 DDIM steps, 512 px, Stable Diffusion 1.5 on an "
            "NVIDIA TITAN RTX; to compare with × whole."
        },
        published={
            "plain": 9.50,
            "cudnn_autotune": 9.37,
            "half_precision": 3.61,
            "channels_last": 3.30,
            "traced": 3.21,
            "memory_efficient": 2.63,
        },
        published_on="TITAN RTX",
    ),
)
