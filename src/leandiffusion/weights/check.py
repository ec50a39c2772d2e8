"""Do the tensors of a checkpoint correspond to the weights of a network? Answered from names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from ..core.errors import TensorMismatch
from .header import TensorEntry

_LISTED = 5


def named_for(cls: type[nn.Module], entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The entries under the parameter names of `cls`: renamed by its `rename_keys`, without its `ignored_keys`.

    Raises TensorMismatch when two tensors of the checkpoint get one name.
    """
    ignored = [re.compile(pattern) for pattern in getattr(cls, "ignored_keys", ())]
    kept = [name for name in entries if not any(pattern.search(name) for pattern in ignored)]
    renames: dict[str, str] = cls.rename_keys(kept) if hasattr(cls, "rename_keys") else {}  # type: ignore[operator]
    named: dict[str, TensorEntry] = {}
    for name in kept:
        target = renames.get(name, name)
        if target in named:
            raise TensorMismatch(
                f"{entries[name].file}: {name!r} and {named[target].name!r} are both {target!r} of {cls.__name__}, "
                "expected one. Save the checkpoint again without the duplicate."
            )
        named[target] = entries[name]
    return named


def check_tensors(network: nn.Module, entries: Mapping[str, TensorEntry]) -> None:
    """TensorMismatch unless every weight has its entry, every entry its weight, and their shapes and kinds agree.

    Weights that are one parameter under several names need one entry; buffers that the constructor made need none.
    """
    expected: dict[str, torch.Tensor] = network.state_dict(keep_vars=True)
    filled = {id(tensor) for name, tensor in expected.items() if name in entries}
    missing = [name for name, tensor in expected.items() if tensor.is_meta and id(tensor) not in filled]
    unexpected = [name for name in entries if name not in expected]
    different = [n for n, tensor in expected.items() if n in entries and not _agree(tensor, entries[n])]
    if not (missing or unexpected or different):
        return
    raise TensorMismatch(
        f"{_files(entries)} does not hold the weights of this {type(network).__name__}: {len(missing)} missing, "
        f"{len(unexpected)} unexpected, {len(different)} of another shape or kind; {len(expected)} expected."
        + _listing("Missing", [f"{n}: expected {_describe(expected[n])}" for n in missing])
        + _listing("Unexpected", [f"{_original(n, entries[n])}: found {_describe(entries[n])}" for n in unexpected])
        + _listing("Different", [
            f"{_original(n, entries[n])}: expected {_describe(expected[n])}, found {_describe(entries[n])}"
            for n in different
        ])
        + "\nThe config and the weights belong to different models, or the checkpoint is incomplete."
    )  # fmt: skip


def _agree(tensor: torch.Tensor, entry: TensorEntry) -> bool:
    same_shape = _squeezed(entry.shape) == _squeezed(tuple(tensor.shape))
    return same_shape and tensor.is_floating_point() == entry.dtype.is_floating_point


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution (O, I, 1, 1) and a linear layer (O, I) hold the same numbers, and checkpoints mix the two."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _files(entries: Mapping[str, TensorEntry]) -> str:
    files = sorted({str(entry.file) for entry in entries.values()})
    if not files:
        return "The checkpoint, which is empty,"
    return files[0] + (f" (with {len(files) - 1} more shards)" if len(files) > 1 else "")


def _original(name: str, entry: TensorEntry) -> str:
    return name if entry.name == name else f"{name} (in the file: {entry.name})"


def _describe(thing: torch.Tensor | TensorEntry) -> str:
    return f"{str(thing.dtype).removeprefix('torch.')} {tuple(thing.shape)}"


def _listing(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    more = f"\n  … and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return f"\n{title}:" + "".join(f"\n  {line}" for line in lines[:_LISTED]) + more
