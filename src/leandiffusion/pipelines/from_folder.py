"""A pipeline from a folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch

from ..core.once import opening
from ..families.folder import open_folder, read_index
from ..modules.base import either_dtype
from ..techniques import Technique
from ..weights.locate import find_checkpoint
from .given import open_given
from .opening import Opening, Placing
from .options import take_neutral


class FromFolder(Opening):
    """Mixin of the pipelines."""

    @classmethod
    @opening()
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        device: str | torch.device | None = None,
        variant: str | None = None,
        revision: str | None = None,
        use_safetensors: bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        low_cpu_mem_usage: bool = True,
        offload: str | Technique | None = None,
        memory: Any = None,
        allow: str = "exact",
        **components: Any,
    ) -> Self:
        """Open a local folder, a hub id, or 'demo', the small model in this package.

        `dtype` (older name `torch_dtype`) is the type weights get on their way from the file: float32 unless given.
        They are read when they are first used, files, names and shapes are checked now. `device` is where they go,
        at once unless it is the CPU, and without a copy there. `variant="fp16"` chooses files; `revision` a branch, tag
        or commit of a hub id. A component by name replaces the checkpoint's, None leaves it out; `vae` may also be a
        path, of a .safetensors file or a folder. Reading never takes much more memory than the weights, whatever
        `low_cpu_mem_usage` says. `offload` is 'model', 'sequential' or such a technique, as if switched on afterwards:
        on a CPU weights then never are in memory as a whole. `memory` instead has the fastest settings chosen with
        which drawing stays within it, on `device` or the machine's accelerator; it and `allow` are those of `plan_for`,
        and calls larger than planned for are planned anew. `DiffusionPipeline.from_pretrained` opens with the class
        that the checkpoint was made for.

        Raises ConfigError for wrong arguments, WeightsError's kinds for what is wrong with the files.
        """
        name = pretrained_model_name_or_path
        if not cls.component_names:
            from . import open_pipeline

            options = {
                "torch_dtype": torch_dtype, "dtype": dtype, "device": device, "variant": variant, "revision": revision,
                "use_safetensors": use_safetensors, "cache_dir": cache_dir, "token": token, "offload": offload,
                "memory": memory, "allow": allow if memory is not None else None,
            }  # fmt: skip
            given = {key: value for key, value in options.items() if value is not None}
            return open_pipeline(name, local_files_only=local_files_only, **given, **components)
        device = take_neutral(components, device)
        settings = cls._take_settings(components, cls.from_pretrained)
        chosen = either_dtype(dtype, torch_dtype)
        placing = Placing.of(offload, device, memory, allow)
        found = find_checkpoint(
            packaged(name), revision=revision, variant=variant, use_safetensors=use_safetensors,
            local_files_only=local_files_only, cache_dir=cache_dir, token=token, without=tuple(components),
        )  # fmt: skip
        index = read_index(found.folder)
        described = f"{name}, a {index.pipeline or 'pipeline'},"
        cls._check_fit(described, index.components, components, made_for=index.pipeline)
        components = open_given(components, cls, found.folder, dtype=chosen, device=placing.now, on_disk=True)
        opened = open_folder(
            found.folder, dtype=chosen, device=placing.now, variant=found.variant, use_safetensors=use_safetensors,
            components=components, on_disk=True,
        )  # fmt: skip
        stored = {key: value for key, value in index.settings.items() if key in cls._setting_names()}
        parts: dict[str, Any] = {part: opened.get(part) for part in cls.component_names}
        pipe = cls(**parts, **{**stored, **settings})
        pipe._opened_from = str(name)
        if packaged(name) != name:
            from ..demo import notice

            pipe.notice = notice
        return pipe._opened(placing)


def packaged(path_or_id: str | Path) -> str | Path:
    """'demo' -> the folder of the packaged model, unless a folder of that name lies here; all else as it is."""
    if str(path_or_id) != "demo" or Path("demo", "model_index.json").exists():
        return path_or_id
    from ..demo import model_folder

    return model_folder()
