"""The dtype to draw in where none was asked for: on a CPU the one that was measured to be faster there."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..core.cache import cache_folder
from ..core.config import read_json, write_json
from ..core.errors import MalformedFile
from ..device.capabilities import usual_dtype
from ..device.host import is_host
from ..device.threads import compute_alone, compute_aside
from ..modules.convolution import Conv2d
from ..modules.linear import linear
from ..weights.build import build_empty
from .profile import identity_of

WORTH = 1.2
"""Times as fast as float32 bfloat16 has to be: it costs digits."""

RUNS = 2

Run = Callable[[], object]


def faster_dtype(device: torch.device, say: Callable[[str], object] = lambda line: None) -> torch.dtype:
    """float16 on an accelerator. On a CPU bfloat16 where it is `WORTH` it, and else float32.

    That is measured once, in a second or two, on layers like those of Stable Diffusion 1.5 at 256 pixels, and kept in
    the cache folder for as long as versions, processor and number of threads stay the same. `say` gets a line about it
    then. Seconds are those of the processor, which other programs disturb little.
    """
    if not is_host(device):
        return usual_dtype(device)
    path, now = cache_folder() / "dtype-cpu.json", identity_of(device)
    gain = _kept(path, now)
    if gain is None:
        gain = measure_gain()
        better = "bfloat16" if gain >= WORTH else "float32"
        say(f"Drawing in {better}: bfloat16 was measured here at {gain:.2g} times the speed of float32")
        _keep(path, now, gain)
    return torch.bfloat16 if gain >= WORTH else torch.float32


def measure_gain() -> float:
    """How many times as fast as float32 this CPU computes bfloat16; 0 where it does not compute it at all.

    On one core. What takes longer than float32 did is not finished: then the figure, below 1, is an upper bound.
    """
    return compute_aside(_measured)


@torch.no_grad()
def _measured(interrupted: threading.Event) -> float:
    compute_alone()  # threads that wait for others who use the machine take the processor's seconds too
    full = _seconds(torch.float32, math.inf, interrupted)
    try:
        return full / _seconds(torch.bfloat16, full, interrupted)
    except RuntimeError:  # "not implemented for 'BFloat16'"
        return 0.0


def _seconds(dtype: torch.dtype, most: float, interrupted: threading.Event) -> float:
    """Of the processor, for all layers; less where those so far took more than `most`."""
    total = 0.0
    for run in _layers(dtype):
        if interrupted.is_set():
            raise KeyboardInterrupt
        first = _timed(run)  # packs weights and chooses kernels too
        hopeless = total + first > 2 * most
        total += first if hopeless else min(_timed(run) for _ in range(RUNS))
        if total > most:
            break
    return total


def _timed(run: Run) -> float:
    begun = time.process_time()
    run()
    return max(time.process_time() - begun, 1e-6)


def _layers(dtype: torch.dtype) -> Iterator[Run]:
    """Convolutions of the outermost and innermost level, a linear layer, self-attention."""
    for channels, side in ((320, 32), (1280, 8)):
        conv = build_empty(lambda channels=channels: Conv2d(channels, channels))
        conv.weight = nn.Parameter(_full(channels, channels, 3, 3, dtype=dtype), requires_grad=False)
        conv.bias = nn.Parameter(_full(channels, dtype=dtype), requires_grad=False)
        conv.packs = True
        yield partial(conv, _full(2, side, side, channels, dtype=dtype).permute(0, 3, 1, 2))
    x, weight = _full(512, 1280, dtype=dtype), _full(1280, 1280, dtype=dtype)
    yield lambda: linear(x, weight)
    q = _full(2, 8, 1024, 40, dtype=dtype)
    yield lambda: F.scaled_dot_product_attention(q, q, q)


def _full(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, 0.01, dtype=dtype)


def _kept(path: Path, now: dict[str, str]) -> float | None:
    """What was measured under the same circumstances; None where that was not, or the file is damaged."""
    try:
        values: Any = read_json(path)
        return float(values["gain"]) if values["taken_under"] == now else None
    except (OSError, MalformedFile, KeyError, TypeError, ValueError):
        return None


def _keep(path: Path, now: dict[str, str], gain: float) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"taken_under": now, "gain": gain})
    except OSError:
        pass  # measured again next time
