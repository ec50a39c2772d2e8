"""OpenVINO drawing a row on the CPU: it runs the networks, converted once for one shape, and this library's loop calls
them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ....core.aside import aside
from ....core.errors import BackendUnavailable
from ....measure.environment import package_version
from ...drawer import Meter
from ...workload import Job, Row, Workload
from .. import peers


@peers.register("openvino")
class OpenVINO:
    """Compiles what `prepare` wrote: no weights of this library's networks are in memory.

    A row's settings are properties of OpenVINO's CPU device. BackendUnavailable where it lacks the row's precision.
    """

    requires: ClassVar[tuple[str, ...]] = ("openvino",)

    def __init__(self, job: Job) -> None:
        import torch

        from ....device.openvino import openvino
        from ...loop import open_for_drawing
        from .networks import KINDS

        self._job = job
        core = openvino().Core()
        _check_precision(core, job.row.settings["INFERENCE_PRECISION_HINT"])
        properties = {**job.row.settings, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        parts: dict[str, Any] = {path.name: KINDS[path.name](core, path, properties) for path in _home(job).iterdir()}
        self._pipe = open_for_drawing(job.checkpoint, **parts)

    @classmethod
    def rows(cls, workload: Workload) -> list[Row]:
        precisions = (("f32", "float32"), ("bf16", "bfloat16"))
        return [
            Row(
                f"openvino_{precision}", f"OpenVINO {precision}", dtype, peer="openvino",
                settings={"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"},
            )
            for precision, dtype in precisions[: 1 if workload.half == "float32" else 2]
        ]  # fmt: skip

    @classmethod
    def prepare(cls, job: Job) -> None:
        """Convert the networks, unless they lie in `job.work` already. Rows of both precisions use the same.
        BackendUnavailable off the CPU."""
        from .convert import convert

        if job.workload.device != "cpu":
            raise BackendUnavailable("OpenVINO draws on the CPU here: --device cpu")
        home = _home(job)
        if home.exists():
            return
        with aside(home) as place:
            convert(job.checkpoint, place, job.size, job.workload.batch)
            os.replace(place, home)

    def draw(self, steps: int, meter: Meter) -> np.ndarray[Any, Any] | None:
        from ...loop import draw_with

        return draw_with(self._pipe, self._job, steps, meter)


def _check_precision(core: Any, precision: str) -> None:
    able = [name.lower() for name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
    if precision != "f32" and precision not in able:
        raise BackendUnavailable(f"OpenVINO does not compute {precision} on this CPU, but {', '.join(able)}")


def _home(job: Job) -> Path:
    """Where the converted networks lie: a folder for each checkpoint as it is now, each size and each batch."""
    path = Path(job.checkpoint)
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    stamp = [
        package_version("openvino"),
        path.resolve().as_posix(),
        *(file.stat().st_mtime_ns for file in files if file.exists()),
    ]
    digest = hashlib.sha256(repr(stamp).encode()).hexdigest()[:12]
    return Path(job.workdir) / f"openvino-{path.stem}-{digest}-{job.size}px-{job.workload.batch}"
