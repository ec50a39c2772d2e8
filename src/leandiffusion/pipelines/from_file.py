"""A pipeline from a checkpoint in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch

from ..core.once import opening
from ..families.single_file import detect_file, open_single_file
from ..modules.base import either_dtype
from ..techniques import Technique
from .given import open_given
from .opening import Opening, Placing
from .options import take_neutral


class FromFile(Opening):
    """Mixin of the pipelines."""

    @classmethod
    @opening()
    def from_single_file(
        cls,
        path: str | Path,
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        device: str | torch.device | None = None,
        prediction_type: str | None = None,
        config: str | Path | None = None,
        original_config: str | Path | None = None,
        local_files_only: bool = True,
        offload: str | Technique | None = None,
        memory: Any = None,
        allow: str = "exact",
        **components: Any,
    ) -> Self:
        """Open a checkpoint of one .safetensors file in the original layout. Nothing is ever downloaded.

        `prediction_type` overrides what SD2 files do not say: 'epsilon' (512 px models) or 'v_prediction' (768 px).
        `config` is a local pipeline folder whose settings replace the built-in ones. Components, `offload`, `memory`
        and `allow` as in `from_pretrained`.
        """
        device = take_neutral(components, device)
        settings = cls._take_settings(components, cls.from_single_file)
        chosen = either_dtype(dtype, torch_dtype)
        placing = Placing.of(offload, device, memory, allow)
        family = detect_file(Path(path).expanduser())
        there = dict.fromkeys([*family.networks, *family.tokenizers, "scheduler"], "") | dict.fromkeys(family.absent)
        cls._check_fit(f"{path}, a {family.title} checkpoint,", there, components)
        folder = None if config is None else Path(config).expanduser()
        components = open_given(components, cls, folder, dtype=chosen, device=placing.now, on_disk=True)
        opened = open_single_file(
            path, dtype=chosen, device=placing.now, components=components, prediction_type=prediction_type,
            config=config, original_config=original_config, on_disk=True,
        )  # fmt: skip
        parts: dict[str, Any] = {name: opened.get(name) for name in cls.component_names}
        usual = {name: value for name, value in family.settings.items() if name in cls._setting_names()}
        pipe = cls(**parts, **{**usual, **settings})
        pipe._opened_from = str(path)
        return pipe._opened(placing)
