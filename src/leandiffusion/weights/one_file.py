"""Where a single .safetensors file is that belongs to no network's folder: an adapter's, or an embedding's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointNotFound, UnsafeFormat
from ..core.hub import check_hub_id, fetch_file, local_path
from .header import PICKLE_SUFFIXES

Pickled = Callable[[str, list[str]], UnsafeFormat]
"""(where, names of pickles) -> what to raise where there are only these."""


def find_one_file(
    path_or_id: str | Path, weight_name: str | None, usual: str, pickled: Pickled, *, subfolder: str | None = None,
    **hub: Any,
) -> Path:  # fmt: skip
    """The file of that name in `subfolder` of a folder or of a repository on the hub; without a name the usual one, or
    the only one there. In a folder it need not exist.

    `hub`: revision, cache_dir, local_files_only, token. CheckpointNotFound, naming what there is, where several could
    be meant or none; what `pickled` gives where only pickles are.
    """
    path = local_path(path_or_id)
    if path.is_dir():
        folder = path / (subfolder or "")
        names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        return folder / (weight_name or _chosen(str(folder), names, usual, pickled))
    check_hub_id(str(path_or_id))
    where = f"{path_or_id} on the hub"
    return fetch_file(
        str(path_or_id), lambda names: weight_name or _chosen(where, names, usual, pickled),
        usual=weight_name or usual, subfolder=subfolder, **hub,
    )  # fmt: skip


def _chosen(where: str, names: list[str], usual: str, pickled: Pickled) -> str:
    safe = [name for name in names if name.endswith(".safetensors")]
    if usual in safe or len(safe) == 1:
        return usual if usual in safe else safe[0]
    if safe:
        raise CheckpointNotFound(f"{where} holds several files: say which by weight_name, of {', '.join(safe[:8])}.")
    if pickles := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        raise pickled(where, pickles)
    raise CheckpointNotFound(f"{where} holds no .safetensors file.")
