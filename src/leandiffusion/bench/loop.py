"""This library's pipeline drawing a job: for this library's own rows, and for peers that only bring networks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..families.folder import read_index
from ..pipelines import open_pipeline
from ..schedulers import build
from .drawer import Meter
from .workload import GUIDANCE, PROMPT, Job, Workload

STAGES = {"encode": "text"}
"""Names of the pipeline's stages in records, where they differ: other programs encode pictures too."""


def open_for_drawing(checkpoint: str, **options: Any) -> Any:
    """The checkpoint as a pipeline of this library, ready to be measured: DDIM, no progress bar, no safety checker."""
    pipe = open_pipeline(checkpoint, **unmeasured(checkpoint), **options)
    pipe.scheduler = build("ddim", pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.notice = None
    pipe.prompt_cache = None  # the same words are drawn again, and encoding them is measured
    return pipe


def unmeasured(checkpoint: str) -> dict[str, Any]:
    """Keywords that leave out the safety checker and its feature extractor, where the checkpoint has them."""
    path = Path(checkpoint)
    present = read_index(path).components if path.is_dir() else {}
    return dict.fromkeys(name for name in ("safety_checker", "feature_extractor") if present.get(name))


def watch_steps(pipe: Any, step: Callable[[], object]) -> None:
    """Call `step` after each step that a pipeline of this library draws.

    By the progress bar, as any call has one. A callback could change the text or the weights, so that after each of its
    calls what was made of the text is made anew: calls without one are what is measured.
    """

    def bar(iterable: Any = None, total: int | None = None) -> AbstractContextManager[Any]:
        return nullcontext(SimpleNamespace(update=step))

    pipe.progress_bar = bar


def draw_with(pipe: Any, job: Job, steps: int, meter: Meter) -> np.ndarray[Any, Any] | None:
    """Draw the job with a pipeline of this library; as `Drawer.draw`."""

    def watch(name: str) -> AbstractContextManager[None]:
        return meter.stage(STAGES.get(name, name))

    workload, side = job.workload, job.size
    pipe.watch = watch
    watch_steps(pipe, meter.step)
    images = pipe(
        [PROMPT] * workload.batch, width=side, height=side, num_inference_steps=steps, guidance_scale=GUIDANCE,
        latents=starting_noise(pipe, workload, side), output_type="np" if job.row.pictures else "latent",
    ).images  # fmt: skip
    return images if job.row.pictures else None


def starting_noise(pipe: Any, workload: Workload, side: int) -> torch.Tensor:
    """The same noise (B, C, h, w) for every row whatever its dtype: drawn in float32."""
    generator = torch.Generator().manual_seed(workload.seed)
    channels = pipe.unet.config.in_channels
    return torch.randn(workload.batch, channels, *(side // pipe.vae_scale_factor,) * 2, generator=generator)
