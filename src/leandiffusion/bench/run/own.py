"""This library drawing a row."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import torch

from ...core.errors import BackendUnavailable, ConfigError
from ...core.units import format_bytes
from ...plan.budget import free_now
from ...plan.sketch import Blueprint, Sketch
from ...plan.stages import trace_stage
from ...run.size import CallSize
from ...techniques.stack import make
from ..drawer import Meter
from ..loop import draw_with, open_for_drawing
from ..workload import Job, Row, Workload


class Own:
    """Opens the row's model and enables its techniques. BackendUnavailable when this machine cannot run the row."""

    requires: ClassVar[tuple[str, ...]] = ()

    def __init__(self, job: Job) -> None:
        self._job = job
        row, workload = job.row, job.workload
        self._pipe = open_for_drawing(
            job.checkpoint, dtype=getattr(torch, job.dtype), device=workload.device, offload=row.offload
        )
        for name, settings in row.enable:
            self._enable(name, settings)
        self._check_memory()

    @classmethod
    def rows(cls, workload: Workload) -> list[Row]:
        return []

    @classmethod
    def prepare(cls, job: Job) -> None:
        return None

    def draw(self, steps: int, meter: Meter) -> np.ndarray[Any, Any] | None:
        return draw_with(self._pipe, self._job, steps, meter)

    def _enable(self, name: str, settings: Any) -> None:
        technique = make(name, dict(settings))
        if reasons := self._pipe.why_not(technique):
            if name == self._job.row.adds or not technique.optional:
                raise BackendUnavailable("; ".join(reasons))
            warnings.warn(f"left out {name}: {'; '.join(reasons)}", stacklevel=2)
        else:
            self._pipe.enable(technique, why="the row asks for it")

    def _check_memory(self) -> None:
        """BackendUnavailable when what a step holds alone is more than there is: the system might end any process."""
        workload, size = self._job.workload, self._job.size
        device = torch.device(workload.device)
        try:
            sketch = Sketch(Blueprint.of_networks("the model", self._pipe._stack.subject.networks, device))
        except ConfigError:  # a network that is not this library's, such as a traced one: nothing is known of it
            return
        traced = [entry.technique for entry in self._pipe.techniques if "denoise" in entry.technique.traced]
        undo = sketch.put_on(traced)
        needed = trace_stage("denoise", sketch.networks, CallSize(size, size, workload.batch), device).peak
        undo()
        free = free_now(device)
        if free is not None and needed > free:
            raise BackendUnavailable(
                f"a step would hold {format_bytes(needed)} besides weights, and {format_bytes(free)} are free"
            )
