"""Pipelines: from text, pictures and masks to pictures. `open_pipeline` picks the class that a checkpoint asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.once import opening


@opening()
def open_pipeline(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    device: str | None = None,
    local_files_only: bool = False,
    task: str | None = None,
    **options: Any,
) -> Any:
    """Open 'demo', a pipeline folder, a hub id, or a single .safetensors file, with the class it was made for.

    `task` is another that its weights can do too: 'text-to-image', 'image-to-image' or 'inpainting', along ControlNets
    if it was saved with some. `options` are those of `from_pretrained` or `from_single_file`. ConfigError when the
    checkpoint belongs to a pipeline that is not supported; WeightsError's kinds for what is wrong with the files.
    """
    hub = {key: options[key] for key in ("revision", "cache_dir", "token") if key in options}
    cls = classes()[pipeline_of(name_or_path, task, local_files_only=local_files_only, **hub)]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return cls.from_single_file(path, dtype=dtype, device=device, **options)
    return cls.from_pretrained(name_or_path, dtype=dtype, device=device, local_files_only=local_files_only, **options)


def pipeline_of(name_or_path: str | Path, task: str | None = None, **hub: Any) -> str:
    """The name of the pipeline that `open_pipeline` opens a checkpoint with. Its model_index.json alone is read, or the
    header of a single file. Raises what opening does."""
    from ..families.folder import read_index
    from ..weights.locate import find_index
    from .from_folder import packaged
    from .tasks import controlled

    path = Path(name_or_path).expanduser()
    if path.is_file():
        return _name_for(task, _made_for_file(path), path)
    index = read_index(find_index(packaged(name_or_path), **hub))
    if task is not None and index.components.get("controlnet") is not None:
        task = controlled(task)
    return _name_for(task, index.pipeline, name_or_path)


def _made_for_file(path: Path) -> str:
    """The pipeline that a single file is for: its UNet tells whether it was trained for inpainting."""
    from ..families.single_file import detect_file
    from .tasks import pipeline_for

    family = detect_file(path)
    inpaints = family.networks["unet"].config["in_channels"] == 9
    return pipeline_for("inpainting", family.pipeline) if inpaints else family.pipeline


def _name_for(task: str | None, wanted: str, source: str | Path) -> str:
    from ..core.errors import ConfigError
    from .tasks import TASKS, pipeline_for, pipeline_names

    if wanted not in pipeline_names():
        (first, known), *others = TASKS.items()
        raise ConfigError(
            f"{source} asks for {wanted!r}; supported are {' and '.join(known)} for {first}, and those like them for "
            f"{', '.join(task for task, _ in others)}."
        )
    return wanted if task is None else pipeline_for(task, wanted)


def classes() -> dict[str, Any]:
    """The pipelines that there are, by name."""
    import leandiffusion

    from .tasks import pipeline_names

    return {name: getattr(leandiffusion, name) for name in pipeline_names()}


__all__ = ["classes", "open_pipeline", "pipeline_of"]
