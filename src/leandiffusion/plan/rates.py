"""Measures how fast a device does what networks consist of, at a few sizes each. A few seconds in all.

What is multiplied is told by its floating-point operations per byte: products of a few tokens wait for their weights,
products of many for the multipliers, and in between the rate follows that number, whatever the shapes are.

Others who use the machine only ever make a run slower. So the points are visited in rounds, each keeps its best run,
and where two contradict each other the faster one is believed (`points.lift`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import backends
from ..attention.openvino import KEYS, QUERIES, is_faster
from ..attention.sdpa import fused_attention
from ..core.malloc import freed_at_once
from ..device.capabilities import EMULATED, onednn_computes
from ..device.host import is_host
from ..device.pinning import staging_buffer
from ..measure.ceiling import fastest_convolutions, least_seconds
from ..modules.linear import linear
from ..weights.opened import OpenFile
from .points import Points, lift, product_rate, sink
from .reading import checkpoint, measure_load, reads

ROUNDS, SECONDS = 3, 0.02
"""How often each point is visited, and for how long: one run at least."""

POOL_BYTES = 72 << 20
"""Of operands that runs take in turn: more than a cache keeps, as between two uses of a layer's weights. Each sample's
own have room in it."""

CHANNELS = 1280

TOKENS = {"host": (1, 8, 32, 128, 1024), "accelerator": (1, 16, 128, 1024, 16384)}
"""Rows of products with weights of CHANNELS x CHANNELS."""

MAPS = {"host": ((1280, 2), (1280, 4), (1280, 8), (640, 16)), "accelerator": ((1280, 4), (1280, 16), (640, 64))}
"""Channels and sides of maps: those that Stable Diffusion has at its inner levels."""

REORDERED = (320, 640, 960, 1280)
"""Output channels of convolutions with plain weights, of 15 to 59 MB. From 32 MiB on allocators give memory back to the
system, and bringing weights into another order takes several times as long."""

ATTENDED = ((16, 77), (64, 64), (256, 77), (256, 256), (1024, 1024), (4096, 4096))
_LONG = tuple((queries, keys) for queries, keys in ATTENDED if queries >= QUERIES and keys >= KEYS)
HEAD = 48
"""Queries and keys of two heads of so many channels: between the 40 of SD1's outer levels and others' 64."""

MEBIBYTES = (1, 6, 11, 14, 72, 90, 102)
"""Read and written by one addition. A third of it is the sum, which is made: around the sizes from which the C library
asks the system for memory, 4 MiB while the VAE decodes in slices and 32 MiB at other times. The 16 MiB of strips and of
sequential offload have no point of their own."""

COPIED_BYTES = 8 << 20

PRODUCTS = ("matmul", "conv", "attention", "long attention")
"""The last where another kernel is faster for it."""


class Sample(NamedTuple):
    """Work of a kind at one point. `run` does it once, `amount` (operations or bytes) in all, at `size`."""

    kind: str
    size: float
    amount: float
    run: Callable[[], object]


class Measured(NamedTuple):
    """What one dtype gives on a device; see `profile.DeviceProfile`. `busy`: the share of its processor, from 0 to 1,
    that products did not get while they were measured; 0 for accelerators, which do not tell."""

    products: dict[str, Points]
    reorder: Points
    fetch: float
    load: float
    busy: float


Step = Callable[[], object]
"""Called when a point was visited."""


def measure_dtype(device: torch.device, dtype: torch.dtype, step: Step) -> Measured:
    """Rates of products, what plain weights of convolutions cost, and of bringing weights from the tier below.

    Where layers compute in float32 although their weights are in `dtype`, products are measured so.
    """
    computed = torch.float32 if is_host(device) and dtype in EMULATED else dtype
    with fastest_convolutions(), checkpoint() if is_host(device) else nullcontext() as file:
        load = None if file is None else measure_load(file, dtype)  # before anything else takes memory
        pool, share = _full((POOL_BYTES // computed.itemsize,), device, computed), _Share()
        found = _measure(lambda: _samples(pool, dtype, file), device, step, share)
    measured = {kind: found[kind] for kind in PRODUCTS if kind in found}
    products = {
        kind: lift((size, amount / seconds) for size, amount, seconds in runs) for kind, runs in measured.items()
    }
    bytes_fetched = sum(amount for _, amount, _ in found["fetch"])
    fetch = bytes_fetched / sum(seconds for _, _, seconds in found["fetch"])
    busy = share.missed if is_host(device) else 0.0
    reorder = _reordering(found.get("plain", []), products["conv"])
    return Measured(products, reorder, fetch, fetch if load is None else load, busy)


def measure_moves(device: torch.device, step: Step, *, fresh: bool) -> Points:
    """Bytes/s of an operation that adds two tensors, by the bytes that it reads and writes. `fresh`: while freed memory
    goes back to the system at once, as in a decode."""
    pool = _full((POOL_BYTES // 4,), device, torch.float32)
    with freed_at_once() if fresh else nullcontext():
        found = _measure(lambda: _additions(pool), device, step)
    return sink((size, amount / seconds) for size, amount, seconds in found["add"])


def measure_overhead(device: torch.device, step: Step) -> float:
    """Seconds of an operation that has next to nothing to do."""
    x, count = torch.ones(16, device=device), 1000

    def run() -> None:
        for _ in range(count):
            torch.add(x, x)

    found = _measure(lambda: iter([Sample("add", 0.0, count, run)]), device, step)
    return found["add"][0][2] / count


def steps_of(device: torch.device, dtypes: int) -> int:
    """How often `step` is called for so many dtypes, moves and overhead included."""
    kind = "host" if is_host(device) else "accelerator"
    each = len(TOKENS[kind]) + len(MAPS[kind]) + len(ATTENDED) + (len(REORDERED) + 2 if is_host(device) else 1)
    each += len(_LONG) if is_faster(device, torch.float32) else 0
    return ROUNDS * (dtypes * each + 2 * len(MEBIBYTES) + 1)


def _reordering(plain: list[tuple[float, float, float]], packed: Points) -> Points:
    """Seconds that plain weights take longer than packed ones, by the bytes that the convolution moves; with more bytes
    never less."""
    found = [(nbytes, max(took - flops / product_rate(packed, flops / nbytes), 0.0)) for nbytes, flops, took in plain]
    return tuple((nbytes, min(seconds for _, seconds in found[i:])) for i, (nbytes, _) in enumerate(found))


@dataclass
class _Share:
    """Of the processor, how much this process got while all its threads had work."""

    processor: float = 0.0
    clock: float = 0.0

    @contextmanager
    def count(self) -> Iterator[None]:
        """Meanwhile every thread has work."""
        begun = time.process_time(), time.perf_counter()
        yield
        self.processor += time.process_time() - begun[0]
        self.clock += time.perf_counter() - begun[1]

    @property
    def missed(self) -> float:
        """What it did not get, from 0 to 1."""
        return min(max(1 - self.processor / (self.clock * torch.get_num_threads()), 0.0), 1.0)


def _measure(
    samples: Callable[[], Iterator[Sample]], device: torch.device, step: Step, share: _Share | None = None
) -> dict[str, list[tuple[float, float, float]]]:
    """(size, amount, seconds of the best run) of every sample, by kind."""
    best: dict[tuple[str, int], tuple[float, float, float]] = {}
    with torch.no_grad():
        for number in range(ROUNDS):
            visited, i = samples(), 0
            while (sample := next(visited, None)) is not None:
                if not number:
                    sample.run()  # first runs choose kernels, and let the allocator see the sizes
                with share.count() if share is not None and sample.kind in PRODUCTS else nullcontext():
                    took = least_seconds(sample.run, device, SECONDS)
                before = best.get((sample.kind, i), (0.0, 0.0, took))[2]
                best[sample.kind, i] = (sample.size, sample.amount, min(took, before))
                i, sample = i + 1, None  # so that one is in memory at a time
                step()
    found: dict[str, list[tuple[float, float, float]]] = {}
    for (kind, _), values in best.items():
        found.setdefault(kind, []).append(values)
    return found


# -- what is run -------------------------------------------------------------------------------------------------------


def _samples(pool: Tensor, dtype: torch.dtype, file: OpenFile | None) -> Iterator[Sample]:
    """`file`: what weights are read from where they come from files, on the host."""
    host, kind = is_host(pool.device), "host" if is_host(pool.device) else "accelerator"
    packs = host and onednn_computes(dtype)
    for tokens in TOKENS[kind]:
        yield _matmul(tokens, pool)
    for channels, side in MAPS[kind]:
        yield _conv("conv", channels, channels, side, pool, packs=packs)
    for outs in REORDERED if packs else ():
        yield _conv("plain", CHANNELS, outs, 4, pool, packs=False)
    for queries, keys in ATTENDED:
        yield _attention("attention", fused_attention, queries, keys, pool)
    for queries, keys in _LONG if is_faster(pool.device, pool.dtype) else ():
        yield _attention("long attention", backends.get("openvino"), queries, keys, pool)
    yield from _copies(pool.device) if file is None else _reads(file, pool.view(dtype))


def _matmul(tokens: int, pool: Tensor) -> Sample:
    x, weights = pool[: tokens * CHANNELS].view(tokens, CHANNELS).clone(), _cut(pool, (CHANNELS, CHANNELS))
    flops, nbytes = 2.0 * tokens * CHANNELS**2, 2 * x.nbytes + weights[0].nbytes
    return Sample("matmul", flops / nbytes, flops, _in_turn(weights, lambda weight: linear(x, weight)))


def _conv(name: str, ins: int, outs: int, side: int, pool: Tensor, *, packs: bool) -> Sample:
    """3x3, of a batch of two, with a channels-last map and weights in their usual order, as they are in a UNet where
    nothing is switched on. 'plain' ones are told by the bytes that they move."""
    x = _cut(pool, (2, side, side, ins))[0].clone().permute(0, 3, 1, 2)
    weight = _cut(pool, (outs, ins, 3, 3))[0]
    nbytes = x.nbytes + weight.nbytes + 2 * outs * side * side * pool.itemsize
    flops = 2.0 * 2 * side * side * weight.numel()
    size = flops / nbytes if name == "conv" else float(nbytes)
    if not packs:
        return Sample(name, size, flops, lambda: F.conv2d(x, weight, padding=1))
    ops, geometry = torch.ops.mkldnn, ([1, 1], [1, 1], [1, 1], 1)
    weight = ops._reorder_convolution_weight(weight, *geometry, list(x.shape))
    return Sample(name, size, flops, lambda: ops._convolution_pointwise(x, weight, None, *geometry, "none", [], ""))


def _attention(name: str, kernel: Callable[..., Tensor], queries: int, keys: int, pool: Tensor) -> Sample:
    q, k = (_cut(pool, (1, 2, count, HEAD))[0].clone() for count in (queries, keys))
    flops = 4.0 * q.numel() * keys
    size = flops / (2 * (q.nbytes + k.nbytes))
    return Sample(name, size, flops, lambda: kernel(q, k, k))


def _reads(file: OpenFile, pool: Tensor) -> Iterator[Sample]:
    for nbytes, run in reads(file, pool):
        yield Sample("fetch", 0.0, nbytes, run)


def _copies(device: torch.device) -> Iterator[Sample]:
    block, target = staging_buffer(COPIED_BYTES, device), torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    yield Sample("fetch", 0.0, COPIED_BYTES, lambda: target.copy_(block, non_blocking=True))


def _additions(pool: Tensor) -> Iterator[Sample]:
    for mebibytes in MEBIBYTES:
        pairs = _cut(pool, (2, (mebibytes << 20) // 12))
        nbytes = 1.5 * pairs[0].nbytes
        yield Sample("add", nbytes, nbytes, _in_turn(pairs, lambda pair: torch.add(pair[0], pair[1])))


def _full(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, 0.01, device=device, dtype=dtype)


def _cut(pool: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """Operands of that shape, as many as the pool has room for."""
    size = math.prod(shape)
    return [part.view(shape) for part in pool[: pool.numel() // size * size].split(size)]


def _in_turn(operands: list[Tensor], run: Callable[[Any], object]) -> Callable[[], object]:
    turn = itertools.cycle(operands)
    return lambda: run(next(turn))
