"""Records as a run would leave them: numbers made up, of the size that a small CPU gives."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from leandiffusion.bench.record import Absent, Failure, Measurement, Outcome, Records, Run

GIB = 2**30
DRIFT = (1.0, 1.08, 0.97)
"""The machine's mood: every row of a round is slower or faster by this."""

LOAD = {
    "model": "shape:sd15", "size": 512, "steps": 4, "batch": 1, "half": "bfloat16", "device": "cpu", "repeat": 3,
    "seed": 0,
}  # fmt: skip

ENVIRONMENT = {
    "versions": {"leandiffusion": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "xformers": None},
    "system": {"platform": "Linux-6.18-x86_64", "executable": "/venv/bin/python"},
    "cpu": {"model": "AMD EPYC 9R14", "logical cores": 2, "usable cores": 2, "flags": ["avx2", "avx512_bf16"]},
    "memory": {"total": "23.5 GiB", "available": "23.1 GiB", "container limit": None, "swap": "0 B"},
    "threads": {"intra-op": 2, "inter-op": 2},
    "devices": {"CUDA build": None, "cuDNN": None, "oneDNN": True},
}

CEILING = {"float32": {"matmul": 184e9, "conv": 225e9}, "bfloat16": {"matmul": 384e9, "conv": 436e9}}

# name: (title, settings, peer, dtype, seconds per step, of decoding, of preparing, peak in GiB, PSNR, SSIM)
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "plain": ("plain fp32", "float32, attention_backend", None, "float32", 11.4, 16.1, 0.1, 6.1, None, 1.0),
    "half_precision": ("+ half precision", "bfloat16", None, "bfloat16", 6.9, 8.5, 0.1, 3.4, 38.2, 0.9871),
    "channels_last": ("+ channels-last", "bfloat16, channels_last", None, "bfloat16", 6.1, 7.1, 0.2, 3.45, 38.1, 0.987),
    "traced": ("+ traced UNet", "bfloat16, traced_unet", None, "bfloat16", 5.8, 7.1, 9.4, 3.5, 38.1, 0.987),
    "memory_efficient": ("+ memory-efficient attention", "bfloat16, attention_backend(backend='memory_efficient')",
                         None, "bfloat16", 5.1, 6.3, 9.6, 3.0, 37.9, 0.9868),
    "best_fp32": ("fp32, channels-last", "float32, channels_last", None, "float32", 8.9, 13.2, 0.1, 5.2, 92.0, 1.0),
    "diffusers_half": ("diffusers, bf16, channels-last", "diffusers: bfloat16, channels_last=True", "diffusers",
                       "bfloat16", 6.3, 7.4, 0.1, 5.3, 37.5, 0.9861),
    "openvino_half": ("OpenVINO, bf16", "openvino: bfloat16", "openvino", "bfloat16", 4.9, 6.5, 2.1, 6.3, 37.1, 0.985),
}  # fmt: skip

Maker = Callable[..., Measurement]


def measurement(row: str, number: int = 0, *, noise: float = 0.01, **changes: Any) -> Measurement:
    """A measurement of a row of `PUBLISHED`; `changes` replace its fields."""
    _, _, _, dtype, step, decode, prepare, peak, psnr, ssim = PUBLISHED[row]
    mood = DRIFT[number] * random.Random(f"{row} {number}").uniform(1 - noise, 1 + noise)
    seconds = {"load": 2.1, "prepare": prepare, "text": 0.2 * mood, "step": step * mood, "denoise": 4 * step * mood}
    seconds["decode"] = decode * mood
    ceiling = {dtype: {kind: rate / DRIFT[number] for kind, rate in each.items()} for dtype, each in CEILING.items()}
    shares = {"load": 0.6, "warm-up": 1.0, "text": 0.62, "denoise": 0.8, "decode": 0.97}
    peaks = {stage: int(share * peak * GIB) for stage, share in shares.items()}
    made = Measurement(
        row, number, seconds, [step * mood] * 4, peaks, dtype,
        timeline=timeline(seconds, peaks) if number == 0 else [], quality={"psnr": psnr, "ssim": ssim},
        ceiling=ceiling,
    )  # fmt: skip
    return replace(made, **changes)


def timeline(seconds: dict[str, float], peaks: dict[str, int]) -> list[tuple[float, int, str]]:
    """Memory climbs while loading, and swings between steps."""
    stages = {
        "load": seconds["load"],
        "warm-up": seconds["text"] + seconds["step"] + seconds["decode"] + seconds["prepare"],
        "text": seconds["text"],
        "denoise": seconds["denoise"],
        "decode": seconds["decode"],
    }
    now, found = 0.0, []
    for stage, length in stages.items():
        count = max(int(length / 0.1), 1)
        for i in range(count):
            share = i / count if stage == "load" else 0.85 + 0.15 * abs(math.sin(4 * math.pi * i / count))
            found.append((round(now + length * i / count, 3), int(peaks[stage] * max(share, 0.05)), stage))
        now += length
    return found


def run_of(rows: dict[str, tuple[Any, ...]], suite: str = "published", **load: Any) -> Run:
    described = {name: {"title": row[0], "about": row[1], "peer": row[2]} for name, row in rows.items()}
    flops = {"step": 1.607e12, "decode": 2.51e12}
    return Run(suite, {**LOAD, **load}, described, ENVIRONMENT, flops, "0123456789", "2026-01-02T03:04:05+00:00")


@pytest.fixture
def published() -> Records:
    """Eight rows, two of them peers, in three rounds; one row absent, one that failed."""
    rows = {
        **PUBLISHED,
        "cudnn_autotune": ("+ cuDNN autotuner", "", None),
        "compiled": ("half precision, compiled", "", None),
    }
    outcomes: list[Outcome] = [Absent("cudnn_autotune", "this machine has no cuDNN")]
    for number in range(3):
        outcomes += [measurement(row, number) for row in PUBLISHED]
        if number == 0:
            outcomes.append(Failure("compiled", 0, "RuntimeError: no C++ compiler\nwas found"))
    return Records(run_of(rows), outcomes, complete=True)


@pytest.fixture
def attention() -> Records:
    """Four sizes in three rounds; of the largest the scores do not fit."""
    rows: dict[str, tuple[Any, ...]] = {}
    reason = "attention's scores alone would take 64 GiB, and 20 GiB are free"
    outcomes: list[Outcome] = [Absent("2048_before", reason)]
    figures = {
        256: (1.7, 1.5, 2.4, 2.3),
        512: (6.9, 5.1, 3.4, 2.6),
        1024: (48.0, 24.0, 12.1, 3.4),
        2048: (0, 160, 0, 6),
    }
    for size, (*steps, before, after) in figures.items():
        for when, step, peak in zip(("before", "after"), steps, (before, after), strict=True):
            name = f"{size}_{when}"
            rows[name] = (f"{size} px, {when}", f"bfloat16, {when}", None)
            for number in range(3 if step else 0):
                seconds = {"step": step * DRIFT[number], "denoise": 4 * step, "text": 0.2}
                peaks = {"denoise": int(peak * GIB)}
                outcomes.append(Measurement(name, number, seconds, [step] * 4, peaks, "bfloat16", ceiling=CEILING))
    return Records(run_of(rows, "attention"), outcomes, complete=True)


@pytest.fixture
def measure() -> Maker:
    """Makes a measurement of a row of the published suite."""
    return measurement


@pytest.fixture
def records_of() -> Callable[..., Records]:
    """Makes complete records of measurements of published rows; `load` changes the workload."""

    def make(*outcomes: Outcome, suite: str = "published", complete: bool = True, **load: Any) -> Records:
        names = {outcome.row for outcome in outcomes}
        rows = {name: row for name, row in PUBLISHED.items() if name in names}
        return Records(run_of(rows, suite, **load), list(outcomes), complete)

    return make
