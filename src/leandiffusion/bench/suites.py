"""The rows of each suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..device.host import is_host
from .workload import Row, Workload

Settings = tuple[tuple[str, Mapping[str, Any]], ...]

SCORES: Settings = (("attention_backend", {"backend": "plain"}),)
"""Attention that keeps its scores, as every pipeline's was when the tables were published."""

AUTOTUNE: Settings = (("cudnn_autotune", {}),)
CHANNELS_LAST: Settings = (("channels_last", {}),)
TRACED: Settings = (("traced_unet", {}),)
EFFICIENT: Settings = (("attention_backend", {"backend": "memory_efficient"}),)
SLICED: Settings = (("attention_slicing", {"size": "max"}),)
TILED: Settings = (("vae_tiling", {}),)

SIZES = (256, 512, 1024, 2048)
"""Of the attention suite, in pixels."""

COMPILING = "compiling takes minutes per round"


def published(load: Workload) -> list[Row]:
    """The published table, each row on top of the one before; then what came after it."""
    scores = SCORES + AUTOTUNE
    rows = [
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
    ]  # fmt: skip
    return rows if load.half != "float32" else [_without_half(row) for row in rows]


def memory(load: Workload) -> list[Row]:
    """What offloading, slicing and tiling save, alone and together."""
    rows = [
        Row("resident", "everything resident"),
        Row("resident_fp32", "everything resident, fp32", "float32"),
        Row("plain_attention", "attention that keeps its scores", techniques=SCORES),
        Row("attention_slicing", "the same, sliced", techniques=SCORES + SLICED, adds="attention_slicing"),
        Row("vae_slicing", "VAE slicing", techniques=(("vae_slicing", {}),), adds="vae_slicing"),
        Row("vae_tiling", "VAE tiling", techniques=TILED, adds="vae_tiling"),
        Row("model_offload", "model offload", offload="model"),
        Row("half_resident", "sequential offload, half of the weights resident", techniques=_resident(0.5),
            offload="sequential"),
        Row("sequential_offload", "sequential offload", offload="sequential"),
        Row("sequential_slicing", "sequential offload, attention slicing", techniques=SLICED, offload="sequential"),
        Row("least", "sequential offload, attention slicing, VAE tiling", techniques=SLICED + TILED,
            offload="sequential"),
    ]  # fmt: skip
    return [row for row in rows if row.name != "resident_fp32" or load.half != "float32"]


def attention(load: Workload) -> list[Row]:
    """Steps per second before and after memory-efficient attention, by size of the picture."""
    rows = []
    for size in SIZES:
        slow = size > 1024 and is_host(load.device)
        asked = "a step of this size takes minutes on a CPU" if slow else ""
        rows += [
            Row(f"{size}_before", f"{size} px, scores kept", techniques=SCORES, size=size, pictures=False, asked=asked),
            Row(f"{size}_after", f"{size} px, memory-efficient", techniques=EFFICIENT, adds="attention_backend",
                size=size, pictures=False, asked=asked),
        ]  # fmt: skip
    return rows


SUITES: dict[str, Callable[[Workload], list[Row]]] = {"published": published, "memory": memory, "attention": attention}


def _resident(fraction: float) -> Settings:
    return (("sequential_offload", {"resident_fraction": fraction}),)


def _without_half(row: Row) -> Row:
    """The row in float32 where nothing shall be halved; the rows that are about half precision say so."""
    asked = "half precision is switched off: --dtype fp32" if row.name in ("half_precision", "defaults") else row.asked
    return replace(row, asked=asked)
