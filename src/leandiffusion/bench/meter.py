"""Reads clock and memory while a process draws: seconds and peaks by stage, and memory over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ..measure.memory import peak_cuda, peak_rss, reset_peak, rss

SAMPLE_SECONDS = 0.05


class Quiet:
    """Takes no notice: the meter of a warm-up."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self) -> None:
        return None


class Meter:
    """Stages may not nest. On CUDA a stage is charged for the work it asked for, and steps are timed by events, so
    that nothing waits for the device between them.

    With `timeline` a thread notes memory every 50 ms: of CUDA's allocator there, else of the process.
    """

    def __init__(self, device: str, timeline: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.allocated: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.timeline: list[tuple[float, int, str]] = []
        self._cuda = device.startswith("cuda")
        self._index = torch.device(device).index or 0
        self._begin = time.perf_counter()
        self._stage = ""
        self._ticks: list[Any] = []
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True) if timeline else None
        if self._sampler is not None:
            self._sampler.start()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the body of the `with` to stage `name`, and note the most memory held in it."""
        self._stage = name
        reset_peak()
        start = self._now()
        if name == "denoise":
            self._tick()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start
            self._note_peaks(name)
            self._stage = ""

    def step(self) -> None:
        """A denoising step has ended."""
        self._tick()

    @property
    def steps(self) -> list[float]:
        """Seconds of each step; the first one's include what comes before the loop."""
        pairs = list(zip(self._ticks, self._ticks[1:], strict=False))
        if self._cuda:
            return [one.elapsed_time(other) / 1000 for one, other in pairs]
        return [other - one for one, other in pairs]

    def close(self) -> None:
        """End the thread that samples memory."""
        self._done.set()
        if self._sampler is not None:
            self._sampler.join()

    def _tick(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ticks.append(event)
        else:
            self._ticks.append(time.perf_counter())

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _note_peaks(self, name: str) -> None:
        self.peaks[name] = max(self.peaks.get(name, 0), peak_rss() or 0)
        if self._cuda:
            for memory in peak_cuda():
                self.allocated[name] = max(self.allocated.get(name, 0), memory.allocated)
                self.reserved[name] = max(self.reserved.get(name, 0), memory.reserved)

    def _reserved_now(self) -> int:
        return torch.cuda.memory_reserved(self._index) if torch.cuda.is_initialized() else 0

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            held = self._reserved_now() if self._cuda else rss() or 0
            self.timeline.append((round(time.perf_counter() - self._begin, 3), held, self._stage))
