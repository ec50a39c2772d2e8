"""This library drawing a row."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import BackendUnavailable
from ..core.units import format_bytes
from ..device.host import is_host
from ..device.memory import free_memory
from ..families.folder import read_index
from ..measure.environment import available_memory
from ..pipelines import open_pipeline
from ..schedulers import build
from ..techniques.footprint import Work, plain_footprint
from ..techniques.stack import make
from ..techniques.subject import Subject
from .peers.base import Meter
from .workload import GUIDANCE, PROMPT, Job, Row, Workload

STAGES = {"encode": "text"}
"""Names of the pipeline's stages in records, where they differ: other programs encode pictures too."""


class Own:
    """Opens the row's model with its techniques on. BackendUnavailable when this machine can not run the row."""

    requires: ClassVar[tuple[str, ...]] = ()

    def __init__(self, job: Job) -> None:
        self._job = job
        row, load = job.row, job.workload
        self._pipe = open_for_drawing(
            job.folder, dtype=getattr(torch, job.dtype), device=load.device, offload=row.offload
        )
        for name, settings in row.techniques:
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
            warnings.warn(f"without {name}", stacklevel=2)
        else:
            self._pipe.enable(technique, why="the row asks for it")

    def _check_memory(self) -> None:
        """BackendUnavailable when attention's scores alone are more than there is: the system might end any process."""
        load = self._job.workload
        device = torch.device(load.device)
        told = None if is_host(device) else free_memory(device)
        free = available_memory() if told is None else told[0]
        stages = plain_footprint(Subject(self._pipe), Work(self._job.size, self._job.size, load.batch)).stages
        needed = max(stage.attention for stage in stages.values())
        if free is not None and needed > free:
            raise BackendUnavailable(
                f"attention's scores alone would take {format_bytes(needed)}, and {format_bytes(free)} are free"
            )


def open_for_drawing(folder: str, **options: Any) -> Any:
    """The checkpoint as every row of this library's loop draws with it: DDIM, silent, and nothing that no row runs."""
    pipe = open_pipeline(folder, **unmeasured(folder), **options)
    pipe.scheduler = build("ddim", pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.notice = None
    return pipe


def unmeasured(folder: str) -> dict[str, Any]:
    """Components that a checkpoint has and no row runs, to open it without: no program checks what it draws here."""
    path = Path(folder)
    present = read_index(path).components if path.is_dir() else {}
    return dict.fromkeys(name for name in ("safety_checker", "feature_extractor") if present.get(name))


def draw_with(pipe: Any, job: Job, steps: int, meter: Meter) -> np.ndarray[Any, Any] | None:
    """Draw the job with a pipeline of this library; as `Drawer.draw`."""

    def watch(name: str) -> AbstractContextManager[None]:
        return meter.stage(STAGES.get(name, name))

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        meter.step()
        return {}

    load, side = job.workload, job.size
    pipe.watch = watch
    images = pipe(
        [PROMPT] * load.batch, width=side, height=side, num_inference_steps=steps, guidance_scale=GUIDANCE,
        latents=starting_noise(pipe, load, side), callback_on_step_end=after_step,
        output_type="np" if job.row.pictures else "latent",
    ).images  # fmt: skip
    return images if job.row.pictures else None


def starting_noise(pipe: Any, load: Workload, side: int) -> torch.Tensor:
    """The same noise (B, C, h, w) for every row whatever its dtype: drawn in float32."""
    generator = torch.Generator().manual_seed(load.seed)
    channels = pipe.unet.config.in_channels
    return torch.randn(load.batch, channels, *(side // pipe.vae_scale_factor,) * 2, generator=generator)


def drawn_quietly(draw: Any) -> tuple[Any, list[str]]:
    """What `draw()` returns, and the warnings it gave, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = draw()
    return result, list(dict.fromkeys(str(warning.message) for warning in caught))
