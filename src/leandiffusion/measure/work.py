"""Counts of operations and bytes, which unlike time are the same in every run and nearly so on every machine."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@dataclass(frozen=True)
class Allocations:
    """Bytes that torch's CPU allocator handed out: all together, and the most of them in use at one time."""

    total: int
    peak: int


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions in `function()`; a multiply-add counts as two.

    Works on the meta device too, where nothing is computed. oneDNN's own operations count as torch's do. torch's
    counter knows fused attention kernels on CUDA only: elsewhere attention counts if it is written out (the 'plain'
    backend) and is left out, in silence, if it is not.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    onednn = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._convolution_pointwise

    class Counter(TorchDispatchMode):
        """Not torch's FlopCounterMode, which hooks every module: networks do not take short cuts under hooks."""

        flops = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if count := flop_registry.get(func._overloadpacket):
                self.flops += count(*args, **(kwargs or {}), out_val=result)
            elif func._overloadpacket in onednn:  # (input, weight, …) -> what each weight of a row adds to
                self.flops += 2 * result.numel() * args[1][0].numel()
            return result

    with Counter() as counter:
        function()
    return counter.flops


def allocated_bytes(function: Callable[[], object]) -> Allocations:
    """What `function()` takes from torch's CPU allocator, in this thread.

    `peak` is counted from the state before: memory freed that was held then is no credit. Numbers are the same in every
    run, if the function was run once before, so that nothing is made for the first time: work is held to one thread,
    whose number kernels size their workspaces by, and garbage collection waits.

    Counted are the allocator's own events, as torch.profiler records them, because a dispatch mode sees the results of
    operations only and not what kernels take inside: im2col buffers, statistics of norms, workspaces of attention.
    oneDNN's scratchpads and what other threads take (read-ahead in offloading) are seen by neither.
    """
    from torch.profiler import ProfilerActivity, profile

    with _one_thread(), _no_collection():
        # acc_events changes nothing for one cycle, but without it a second one in the process warns.
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            result = function()
        del result  # after the last event: it was in use to the end
    with TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text(encoding="utf-8"))
    return _summed(trace["traceEvents"])


def _summed(events: Iterable[Mapping[str, Any]]) -> Allocations:
    """Of a trace's allocator events, matched by address.

    They cannot simply be added up: the end of a block is told with the size that an earlier trace saw at its address,
    and is not told at all where another thread frees it.
    """
    memory = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    alive: dict[int, int] = {}
    total = peak = now = 0
    for event in sorted(memory, key=lambda event: event["ts"]):
        address, count = event["args"]["Addr"], event["args"]["Bytes"]
        now -= alive.pop(address, 0)
        if count > 0:
            alive[address] = count
            now += count
            total += count
            peak = max(peak, now)
    return Allocations(total, peak)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Cycles of objects are freed before and not during: when the collector runs depends on what ran before."""
    on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
