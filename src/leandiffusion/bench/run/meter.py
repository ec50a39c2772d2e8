"""Reads clock and memory while a process draws: seconds and peaks by stage, and memory over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ...device.host import is_host
from ...device.memory import peak_memory, reserved_memory
from ...device.streams import seconds_between, synchronize, tick
from ...measure.memory import peak_rss, reset_peak, rss

SAMPLE_SECONDS = 0.05


class NullMeter:
    """Measures nothing: for the warm-up."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self) -> None:
        return None


class ProcessMeter:
    """Measures this process: seconds and peak memory by stage, seconds of each step. Stages cannot be nested.

    On a GPU a stage is charged for the work it asked for, and steps are timed by events, so that nothing waits for the
    device between them. With `timeline` a thread notes memory every 50 ms: of torch's allocator there, else of the
    process.
    """

    def __init__(self, device: str, timeline: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.allocated: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.timeline: list[tuple[float, int, str]] = []
        self._device = torch.device(device)
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
        return [seconds_between(one, other) for one, other in pairs]

    def close(self) -> None:
        """End the thread that samples memory."""
        self._done.set()
        if self._sampler is not None:
            self._sampler.join()

    def _tick(self) -> None:
        self._ticks.append(tick(self._device))

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    def _note_peaks(self, name: str) -> None:
        self.peaks[name] = max(self.peaks.get(name, 0), peak_rss() or 0)
        for memory in [] if is_host(self._device) else peak_memory():
            self.allocated[name] = max(self.allocated.get(name, 0), memory.allocated)
            self.reserved[name] = max(self.reserved.get(name, 0), memory.reserved)

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            held = rss() or 0 if is_host(self._device) else reserved_memory(self._device)
            self.timeline.append((round(time.perf_counter() - self._begin, 3), held, self._stage))
