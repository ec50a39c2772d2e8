"""Pipelines: from text to pictures. `open_pipeline` picks the class that a checkpoint asks for."""

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
    **options: Any,
) -> Any:
    """Open 'demo', a pipeline folder, a hub id, or a single .safetensors file, with the class it was made for.

    `options` are those of `from_pretrained` or `from_single_file`. ConfigError when the checkpoint belongs to a
    pipeline that is not supported; WeightsError's kinds for what is wrong with the files.
    """
    from ..core.errors import ConfigError
    from ..families.folder import read_index
    from ..weights.locate import find_index
    from .from_folder import packaged

    known = classes()
    path = Path(name_or_path).expanduser()
    if path.is_file():
        from ..families.single_file import detect_file

        cls = known[detect_file(path).pipeline]
        return cls.from_single_file(path, dtype=dtype, device=device, **options)
    hub = {key: options[key] for key in ("revision", "cache_dir", "token") if key in options}
    folder = find_index(packaged(name_or_path), local_files_only=local_files_only, **hub)
    wanted = read_index(folder).pipeline
    if wanted not in known:
        raise ConfigError(f"{name_or_path} asks for {wanted!r}; supported are {' and '.join(known)}.")
    return known[wanted].from_pretrained(
        name_or_path, dtype=dtype, device=device, local_files_only=local_files_only, **options
    )


def classes() -> dict[str, Any]:
    """The pipelines that there are, by name."""
    from .stable_diffusion import StableDiffusionPipeline
    from .stable_diffusion_xl import StableDiffusionXLPipeline

    return {cls.__name__: cls for cls in (StableDiffusionPipeline, StableDiffusionXLPipeline)}


__all__ = ["classes", "open_pipeline"]
