"""The pipeline for a task, chosen by what the checkpoint or another pipeline is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NoReturn

from ..core.errors import ConfigError
from ..weights.locate import INDEX_FILE
from . import classes, open_pipeline
from .compat import ForScripts
from .tasks import PERTURBED, pipeline_for


class AutoPipeline:
    """Base of the three: `from_pretrained` opens a checkpoint for their task, `from_pipe` shares another's weights."""

    task: ClassVar[str]
    config_name = INDEX_FILE

    def __init__(self, *_: Any, **__: Any) -> NoReturn:
        name = type(self).__name__
        raise ConfigError(f"{name} is no pipeline itself: use {name}.from_pretrained(…) or {name}.from_pipe(pipe).")

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: str | Path, **options: Any) -> Any:
        """Open 'demo', a pipeline folder, a hub id or a single .safetensors file with the pipeline for this task.

        `options` as `from_pretrained` of the pipelines takes them; with a `controlnet` the pipeline is one that draws
        along it, with `enable_pag` one that perturbed attention guides. ConfigError when the checkpoint belongs to a
        kind that is not supported.
        """
        task = cls._task(options.get("controlnet"), options.pop("enable_pag", False))
        return open_pipeline(pretrained_model_or_path, task=task, **options)

    @classmethod
    def from_pipe(cls, pipeline: Any, **changes: Any) -> Any:
        """The pipeline for this task on the components of another, ours or diffusers': weights are shared.

        `changes` as `from_pipe` of the pipelines takes them. ControlNets of the other are kept, unless
        `controlnet=None`, and so is that its class is one with perturbed attention, unless `enable_pag=False`.
        """
        controlnet = changes.get("controlnet", getattr(pipeline, "controlnet", None))
        if controlnet is None:
            changes.pop("controlnet", None)
        guided = changes.pop("enable_pag", getattr(pipeline, "_is_perturbed_by_default", False))
        name = pipeline_for(cls._task(controlnet, guided), type(pipeline))
        return classes()[name].from_pipe(pipeline, **changes)

    @classmethod
    def _task(cls, controlnet: Any, guided: bool) -> str:
        return f"{cls.task}{'' if controlnet is None else ' with ControlNet'}{PERTURBED if guided else ''}"

    load_config = ForScripts.load_config


class AutoPipelineForText2Image(AutoPipeline):
    """The pipeline that draws from a text alone."""

    task = "text-to-image"


class AutoPipelineForImage2Image(AutoPipeline):
    """The pipeline that draws a picture anew."""

    task = "image-to-image"


class AutoPipelineForInpainting(AutoPipeline):
    """The pipeline that draws parts of a picture anew."""

    task = "inpainting"
