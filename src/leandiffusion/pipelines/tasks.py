"""Which pipeline does what with which kind of checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..core.errors import ConfigError

TASKS = {
    "text-to-image": ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    "image-to-image": ("StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"),
    "inpainting": ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
    "text-to-image with ControlNet": ("StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline"),
    "image-to-image with ControlNet": (
        "StableDiffusionControlNetImg2ImgPipeline", "StableDiffusionXLControlNetImg2ImgPipeline",
    ),
    "inpainting with ControlNet": (
        "StableDiffusionControlNetInpaintPipeline", "StableDiffusionXLControlNetInpaintPipeline",
    ),
}  # fmt: skip
"""By task: the pipelines of checkpoints with one text encoder, and with two."""


def perturbed(name: str) -> str:
    """Of a pipeline's name that of the same one with perturbed-attention guidance."""
    return re.sub(r"(Img2Img|Inpaint)?Pipeline$", r"PAG\1Pipeline", name)


PERTURBED = " with perturbed attention"
"""How the tasks end that are done with it."""

_ALL = TASKS | {f"{task}{PERTURBED}": tuple(map(perturbed, names)) for task, names in TASKS.items()}


_CONTROLLED = " with ControlNet"


def controlled(task: str) -> str:
    """The same task with ControlNets; unknown ones as they are."""
    plain, guided, _ = task.partition(PERTURBED)
    return f"{plain}{_CONTROLLED}{guided}" if f"{plain}{_CONTROLLED}" in TASKS else task


def pipeline_for(task: str, pipeline: str | type) -> str:
    """The pipeline that does the task with the checkpoints of `pipeline`, a class or its name.

    ConfigError for an unknown task, and for what is none of the pipelines nor a class derived from one.
    """
    if task not in _ALL:
        raise ConfigError(f"task={task!r} is unknown: use {', '.join(map(repr, TASKS))}.")
    known = known_name(pipeline)
    if known is None:
        raise ConfigError(f"{pipeline!r} is none of the pipelines here: {', '.join(_names(TASKS))}.")
    place = next(pipelines.index(known) for pipelines in _ALL.values() if known in pipelines)
    return _ALL[task][place]


def task_of(pipeline: str) -> str:
    """What the pipeline of that name does."""
    return next(task for task, names in _ALL.items() if pipeline in names)


def known_name(pipeline: str | type) -> str | None:
    """The name under which it, or what it derives from, is one of the pipelines here."""
    names = [pipeline] if isinstance(pipeline, str) else [cls.__name__ for cls in pipeline.__mro__]
    return next((name for name in names if name in pipeline_names()), None)


def pipeline_names() -> list[str]:
    """Those of all tasks, those with perturbed attention last."""
    return _names(_ALL)


def _names(tasks: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [name for pipelines in tasks.values() for name in pipelines]
