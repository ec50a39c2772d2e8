"""Seconds per named stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Watch = Callable[[str], AbstractContextManager[object]]
"""Called with a stage's name; what it returns is entered before the stage begins and left after it ended."""


class StageClock:
    """Adds up wall-clock seconds per stage: `with clock.stage("decode"): …`, then `clock.seconds["decode"]`.

    A stage entered again adds to what it has. Stages may nest; the outer one then counts the inner one's time too.
    `synchronize` is called before each reading: pass `device.streams.synchronize` of the device, whose work may be
    queued, so that a stage is charged for what it asked for. `watch` is entered around each stage, outside of its time:
    to read memory at its ends, say.
    """

    def __init__(self, synchronize: Callable[[], object] | None = None, watch: Watch | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronize = synchronize
        self._watch = watch or nullcontext

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the body of the `with` to stage `name`, also when it raises."""
        with self._watch(name):
            start = self._now()
            try:
                yield
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    @property
    def total(self) -> float:
        """Seconds of all stages together."""
        return sum(self.seconds.values())

    def _now(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()
