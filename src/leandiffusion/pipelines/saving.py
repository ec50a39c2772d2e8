"""A pipeline as a folder: its model_index.json, and what its components write."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..core.config import Config, write_json
from ..core.errors import ConfigError
from ..core.replacing import Replacement
from ..modules.multicontrolnet import MultiControlNetModel
from ..weights.files import stale_weights
from ..weights.locate import INDEX_FILE
from .absent import PUSH, unsupported


class Saving:
    """Mixin of the pipelines."""

    _settings: dict[str, Any]
    components: Any

    @property
    def config(self) -> Config:
        """What model_index.json holds: plain settings, such as requires_safety_checker, and [library, class] pairs."""
        return Config({**self._settings, **self._index()})

    def _index(self) -> dict[str, Any]:
        """The class of the pipeline, and library and class of each component that `save_pretrained` can write."""
        index: dict[str, Any] = {"_class_name": type(self).__name__, "_diffusers_version": "0.30.0"}
        for name, part in self.components.items():
            part = uncompiled(part)
            there = hasattr(part, "save_pretrained")
            index[name] = [_library(part, name), type(part).__name__] if there else [None, None]
        return index

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
    ) -> None:
        """Write a pipeline folder that diffusers opens too: model_index.json and one folder per component.

        What a folder held before is replaced once all is on disk, which takes room for both; an interruption leaves it
        as it was, or has the next opening finish what was begun. Other files stay, and links to folders are followed.
        Parts that opening left out, because drawing does not need them, are read from where the weights came from:
        WeightsError when they are no longer there. A component that cannot be saved is left out, with a warning; what
        torch.compile made of a network is saved as the network. ConfigError for safe_serialization=False, which asks
        for pickles, NotSupported for `push_to_hub` and `use_flashpack`.
        """
        unsupported({"push_to_hub": push_to_hub or None}, PUSH)
        unsupported({"use_flashpack": use_flashpack or None}, "weights are saved as safetensors: leave it out.")
        if not safe_serialization:
            raise ConfigError("safe_serialization=False asks for pickled weights, which are refused: leave it out.")
        folder = Path(save_directory)
        parts = {name: uncompiled(part) for name, part in self.components.items() if part is not None}
        for name, part in list(parts.items()):
            if not hasattr(part, "save_pretrained"):
                del parts[name]
                warnings.warn(
                    f"{name} is a {type(part).__name__}, which has no save_pretrained: it is left out. Pass {name}=… "
                    "when opening the folder.",
                    stacklevel=2,
                )
        for name, part in list(parts.items()):
            if isinstance(part, MultiControlNetModel):  # each has a folder of its own
                parts |= {path.name: uncompiled(net) for path, net in part.placed(folder / name).items()}
        networks = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
        with Replacement(folder, partial(stale_weights, variant=variant)) as new:
            for name, part in parts.items():
                options = {"variant": variant, "max_shard_size": max_shard_size or "10GB"} if name in networks else {}
                part.save_pretrained(new.place(name), **options)
            write_json(new.place() / INDEX_FILE, dict(self.config))


def uncompiled(part: Any) -> Any:
    """The network inside of what torch.compile made of it; anything else as it is."""
    return getattr(part, "_orig_mod", part) if isinstance(part, torch.nn.Module) else part


def _library(part: Any, name: str) -> str:
    module = type(part).__module__
    if name == "safety_checker":
        return "stable_diffusion"
    if name in ("feature_extractor", "image_encoder"):
        return "transformers"
    texts = ("transformers", "leandiffusion.modules.text", "leandiffusion.modules.tokenizer")
    return "transformers" if module.startswith(texts) else "diffusers"
