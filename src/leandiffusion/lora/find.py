"""Where a LoRA's file is: a path, a folder, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import CheckpointNotFound, ConfigError, UnsafeFormat
from ..core.hub import local_path
from ..demo import loras
from ..weights.header import CONVERT_PICKLE, PICKLE_SUFFIXES
from ..weights.one_file import find_one_file

USUAL = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file."""


def find_lora(
    path_or_id: str | Path, *, weight_name: str | None = None, subfolder: str | None = None, **hub: Any
) -> Path:
    """The .safetensors file that is meant: the path itself, or `weight_name` in that folder or hub repository, or one
    of the packaged model's by its name, 'night'.

    Without a name it is the usual one, or the only one there. `hub`: revision, cache_dir, local_files_only, token.
    Raises CheckpointNotFound, naming what there is, and UnsafeFormat where only pickles are.
    """
    path = local_path(path_or_id)
    if weight_name is not None and (not isinstance(weight_name, str) or Path(weight_name).is_absolute()):
        raise ConfigError(f"weight_name={weight_name!r}: give the name of a file inside of the folder or repository.")
    if path.is_file():
        return path
    if not path.exists() and str(path_or_id) in (packaged := loras()):
        return packaged[str(path_or_id)]
    if not path.is_dir() and (path.suffix in (".safetensors", *PICKLE_SUFFIXES) or len(path.parts) > 2):
        raise CheckpointNotFound(
            f"{path_or_id} does not exist: give a LoRA's .safetensors file, a folder, or a hub id."
        )
    return find_one_file(path_or_id, weight_name, USUAL, _pickled, subfolder=subfolder, **hub)


def _pickled(where: str, pickles: list[str]) -> UnsafeFormat:
    return UnsafeFormat(
        f"{where} holds only pickles ({', '.join(pickles[:3])}), which can run any code and are refused. Convert one "
        f"that you trust: {CONVERT_PICKLE}"
    )
