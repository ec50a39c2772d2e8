"""The highest speed that this machine reaches now: of one large matrix product, one large convolution, one large copy.

A UNet is products and convolutions, so its own FLOP/s are a share of these. They are measured beside it, since clock
rates and neighbours on a shared machine change from minute to minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..device.host import is_host

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")

Kernel = tuple[float, Callable[[], object]]
"""How much it does (floating-point operations, or bytes), and a function that does it once."""


@dataclass(frozen=True)
class Sizes:
    """Of the work, from small to large: sides of matrices, pixels of maps, MiB copied (twice that is in memory; the
    last is beyond nearly any cache), and the batch of convolutions."""

    sides: tuple[int, ...]
    pixels: tuple[int, ...]
    mebibytes: tuple[int, ...]
    batch: int


ON_CPU = Sizes(sides=(256, 512, 1024, 2048), pixels=(8, 16, 32, 64), mebibytes=(16, 256), batch=2)
ON_GPU = Sizes(sides=(512, 2048, 8192), pixels=(8, 64), mebibytes=(64, 1024), batch=32)
CHANNELS = 320  # with 64 x 64 pixels: Stable Diffusion's outermost level at 512 px


def measure_ceiling(device: str, dtypes: list[str], seconds: float = 1.0) -> dict[str, dict[str, float]]:
    """FLOP/s by dtype name, then by 'matmul' and 'conv'; and under 'memory' the 'copy' in bytes/s, read and written.

    Each figure is the best of the runs that fit into about `seconds`, at the largest size that runs twice in that
    time: a product of 2048 x 2048 matrices (8192 on a GPU), a 3x3 convolution of 320 channels over 64 x 64 pixels,
    batch 2 (32 on a GPU), channels-last, and a copy of 256 MiB (1 GiB). A multiply-add counts as two. A dtype that
    the device does not compute is left out. float32 is whatever this process's settings make of it, TF32 included.

    ConfigError for dtype names other than 'float32', 'bfloat16' and 'float16', and for devices but CPUs and GPUs.
    """
    import torch

    from ..device.streams import can_be_timed

    where = torch.device(device)
    if not can_be_timed(where):
        raise ConfigError(f"device={device!r}: the ceiling is measured on 'cpu' or 'cuda', or where events tell time.")
    if unknown := [name for name in dtypes if name not in DTYPES]:
        raise ConfigError(f"dtype {unknown[0]!r} is none of {', '.join(DTYPES)}.")
    found: dict[str, dict[str, float]] = {}
    with torch.no_grad(), fastest_convolutions():
        for name in dtypes:
            try:
                found[name] = _compute(where, getattr(torch, name), seconds)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # "not implemented for 'Half'": an old processor, or an old torch
                continue
        found["memory"] = {"copy": _best(_copy, _sizes(where).mebibytes, where, torch.float32, seconds)}
    return found


def _sizes(device: torch.device) -> Sizes:
    return ON_CPU if is_host(device) else ON_GPU


def _compute(device: torch.device, dtype: torch.dtype, seconds: float) -> dict[str, float]:
    return {
        "matmul": _best(_matmul, _sizes(device).sides, device, dtype, seconds),
        "conv": _best(_conv, _sizes(device).pixels, device, dtype, seconds),
    }


def _best(
    make: Callable[[int, torch.device, torch.dtype], Kernel],
    sizes: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
) -> float:
    """The highest rate. Sizes grow until the next would take more than half the time that is left."""
    amount, run = make(sizes[0], device, dtype)
    if not is_host(device):  # what loading libraries and trying algorithms takes is not the device's speed
        timed(run, device)
    start = time.perf_counter()

    def left() -> float:
        return seconds - (time.perf_counter() - start)

    took = _twice(run, device, left)
    for size in sizes[1:]:
        larger, candidate = make(size, device, dtype)
        if took * larger / amount > left() / 2:
            break
        amount, run = larger, candidate
        took = _twice(run, device, left)
    while left() > 0:
        took = min(took, timed(run, device))
    return amount / took


def least_seconds(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Of the fastest run among those that fit into about `seconds`. On a GPU two are made in any case, so that what
    loading libraries takes does not count."""
    start = time.perf_counter()

    def left() -> float:
        return seconds - (time.perf_counter() - start)

    took = _twice(run, device, left)
    while left() > 0:
        took = min(took, timed(run, device))
    return took


def _twice(run: Callable[[], object], device: torch.device, left: Callable[[], float]) -> float:
    """Seconds of the better of two runs, the first of which warms up; on a CPU of that one where no time is left."""
    first = timed(run, device)
    return min(first, timed(run, device)) if not is_host(device) or left() > 0 else first


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, by the device's own clock."""
    from ..device.streams import seconds_between, tick

    begin = tick(device)
    run()
    return seconds_between(begin, tick(device))


def _matmul(side: int, device: torch.device, dtype: torch.dtype) -> Kernel:
    import torch

    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2.0 * side**3, lambda: torch.mm(a, b, out=out)


def _conv(side: int, device: torch.device, dtype: torch.dtype) -> Kernel:
    import torch

    like: Any = {"dtype": dtype, "memory_format": torch.channels_last}
    batch = _sizes(device).batch
    x = torch.randn(batch, CHANNELS, side, side, device=device).to(**like)
    weight = (torch.randn(CHANNELS, CHANNELS, 3, 3, device=device) / CHANNELS).to(**like)
    amount = 2.0 * batch * side**2 * CHANNELS**2 * 9
    return amount, lambda: torch.nn.functional.conv2d(x, weight, padding=1)


def _copy(mebibytes: int, device: torch.device, dtype: torch.dtype) -> Kernel:
    import torch

    source = torch.ones(mebibytes << 20 >> 2, dtype=dtype, device=device)  # 4 bytes each
    target = torch.empty_like(source)
    return 2.0 * source.nbytes, lambda: target.copy_(source)


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN try its algorithms and keep the fastest."""
    from torch.backends import cudnn

    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before
