"""What a program that draws a row offers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import numpy as np

from .workload import Job, Row, Workload


class Meter(Protocol):
    """What a drawer reports its stages and steps to: measures time and memory."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Around 'text', 'denoise' and 'decode'."""
        ...

    def step(self) -> None:
        """After each denoising step."""
        ...


class Drawer(Protocol):
    """Draws a job in this process. Made once per process: making it opens the model."""

    requires: ClassVar[tuple[str, ...]]
    """Packages that have to be installed; the first one's version stands in the record under the peer's name."""

    def __init__(self, job: Job) -> None:
        """Open the model at the job's dtype on its device, with the row's settings. Errors become the row's result."""
        ...

    @classmethod
    def rows(cls, workload: Workload) -> list[Row]:
        """The peer's rows: its best documented settings on the workload's device. Imports nothing of the peer."""
        ...

    @classmethod
    def prepare(cls, job: Job) -> None:
        """Write what takes long and can be used by later processes into `job.workdir`. Runs in a process of its own."""
        ...

    def draw(self, steps: int, meter: Meter) -> np.ndarray[Any, Any] | None:
        """Draw with `steps` steps; pictures (B, H, W, 3) float32 in [0, 1], None for a row without pictures.

        The prompt is `workload.PROMPT` for each picture of the batch, the noise is drawn on the CPU in float32 from
        `torch.Generator().manual_seed(workload.seed)`, the scheduler is DDIM, the guidance scale `workload.GUIDANCE`.
        """
        ...
