"""Where a LoRA's file is: a path, a folder, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import CheckpointNotFound, ConfigError, UnsafeFormat
from ..core.hub import check_hub_id, fetch_file, local_path
from ..demo import loras
from ..weights.header import CONVERT_PICKLE, PICKLE_SUFFIXES

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
    if path.is_dir():
        folder = path / (subfolder or "")
        names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        return folder / (weight_name or _chosen(str(folder), names))
    if path.suffix == ".safetensors" or path.suffix in PICKLE_SUFFIXES or len(path.parts) > 2:
        raise CheckpointNotFound(
            f"{path_or_id} does not exist: give a LoRA's .safetensors file, a folder, or a hub id."
        )
    check_hub_id(str(path_or_id))
    where = f"{path_or_id} on the hub"
    return fetch_file(
        str(path_or_id), lambda names: weight_name or _chosen(where, names), usual=weight_name or USUAL,
        subfolder=subfolder, **hub,
    )  # fmt: skip


def _chosen(where: str, names: list[str]) -> str:
    safe = [name for name in names if name.endswith(".safetensors")]
    if USUAL in safe:
        return USUAL
    if len(safe) == 1:
        return safe[0]
    if safe:
        raise CheckpointNotFound(f"{where} holds several files: say which by weight_name, of {', '.join(safe[:8])}.")
    if pickles := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        raise UnsafeFormat(
            f"{where} holds only pickles ({', '.join(pickles[:3])}), which can run any code and are refused. Convert "
            f"one that you trust: {CONVERT_PICKLE}"
        )
    raise CheckpointNotFound(f"{where} holds no .safetensors file.")
