"""Components that are given when a pipeline is opened or made: objects, None, or for the VAE a path."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import torch

from ..core.config import read_json
from ..core.errors import CheckpointNotFound, ConfigError
from ..core.hub import local_path
from ..core.wording import show
from ..families.base import families
from ..families.folder import INDEX_FILE, UNNEEDED
from ..modules.vae import AutoencoderKL
from ..modules.vae_file import read_vae_file
from ..modules.vae_tiny import AutoencoderTiny, is_tiny, read_tiny_file
from ..weights.header import read_header
from ..weights.load import fill_network, open_network
from .tasks import known_name, pipeline_for

TINY = AutoencoderTiny.__name__
_SHARED = ("scaling_factor", "shift_factor", "force_upcast", "sample_size", "norm_num_groups", "act_fn")
"""Settings of a VAE that its shapes do not tell; the UNet was trained for them."""


def check_given(pipeline: str, components: Mapping[str, Any], paths: tuple[str, ...] = ()) -> None:
    """ConfigError for values that cannot be components: numbers, classes, containers, paths of others than `paths`."""
    for name, part in components.items():
        if isinstance(part, str | Path) and name in paths:
            if not local_path(part).exists():
                raise CheckpointNotFound(
                    f"{name}={show(str(part))} is not a local file or folder. To take it from the hub, pass the "
                    f"object: {name}=AutoencoderKL.from_pretrained({show(str(part))})."
                )
        elif isinstance(part, str | bytes | Path):
            where = " or, when opening a checkpoint, a path" if name == "vae" else ""
            raise ConfigError(
                f"{pipeline}: {name}={show(part)} is a text or path, expected an object{where}: open it with its "
                f"class's from_pretrained and pass what that returns, or None to go without."
            )
        elif isinstance(part, type):
            raise ConfigError(
                f"{pipeline}: {name} is the class {part.__name__}, expected an object of it: pass "
                f"{part.__name__}.from_pretrained(…) or {part.__name__}(…)."
            )
        elif name == "image_encoder" and part is not None and not hasattr(part, "visual_projection"):
            raise ConfigError(
                f"{pipeline}: image_encoder is a {type(part).__name__}, expected a CLIPVisionModelWithProjection, by "
                "which IP-Adapters see: load_ip_adapter opens it, or pass what its from_pretrained returns."
            )
        elif name == "controlnet" and isinstance(part, list | tuple):
            continue  # several as one: the pipeline says what is wrong with them
        elif isinstance(part, Number | Mapping | list | tuple | set | torch.Tensor):
            raise ConfigError(f"{pipeline}: {name}={show(part)} is a {type(part).__name__}, expected a component.")


def open_given(
    components: Mapping[str, Any],
    pipeline: type,
    folder: Path | None,
    *,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    device: str | torch.device | None,
    on_disk: bool,
) -> dict[str, Any]:
    """`components` with the VAE opened if a path was given: a .safetensors file, its folder, or a pipeline's.

    What the shapes of a file do not tell, such as the scale of the latents, is as in the checkpoint in `folder` whose
    VAE it replaces, or as is usual with that class of `pipeline`. A whole checkpoint knows it itself.
    """
    part = components.get("vae")
    if not isinstance(part, str | Path):
        return dict(components)
    path = local_path(part)
    chosen = dtype.get("vae", dtype.get("default")) if isinstance(dtype, Mapping) else dtype
    how: dict[str, Any] = {"dtype": chosen, "device": device, "on_disk": on_disk}
    if path.is_dir():
        inside = path / "vae" if (path / INDEX_FILE).is_file() else path
        tiny = (inside / "config.json").is_file() and read_json(inside / "config.json").get("_class_name") == TINY
    else:
        tiny = is_tiny(read_header(path).entries)
    cls: Any = AutoencoderTiny if tiny else AutoencoderKL
    how["leave_out"] = UNNEEDED[cls.__name__]
    if path.is_dir():
        vae: Any = open_network(cls, inside, **how)
    elif tiny:
        told, entries = read_tiny_file(path)
        vae = fill_network(AutoencoderTiny, told, entries, config_source=str(path), **how)
    else:
        told, entries = read_vae_file(AutoencoderKL, path)
        if "scaling_factor" not in told:
            told |= _shared(pipeline, folder)
        vae = fill_network(AutoencoderKL, told, entries, config_source=str(path), **how)
    return {**components, "vae": vae}


def _shared(pipeline: type, folder: Path | None) -> dict[str, Any]:
    file = folder / "vae" / "config.json" if folder is not None else None
    if file is not None and file.is_file():
        settings: Mapping[str, Any] = read_json(file)
    else:
        kinds = [families.get(name) for name in families]
        base = None if known_name(pipeline) is None else pipeline_for("text-to-image", pipeline)
        settings = next((kind.networks["vae"].config for kind in kinds if kind.pipeline == base), {})
    return {key: settings[key] for key in _SHARED if key in settings}
