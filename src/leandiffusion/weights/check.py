"""Do the tensors of a checkpoint correspond to the weights of a network? Answered from names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from ..core.errors import TensorMismatch
from ..core.notices import warn
from ..core.wording import LONGEST_MESSAGE, dtype_name, show, to_length
from .header import TensorEntry


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
                f"{entries[name].file}: {show(name)} and {show(named[target].name)} are both {show(target)} of "
                f"{cls.__name__}, expected one. Save the checkpoint again without the duplicate."
            )
        named[target] = entries[name]
    return named


def check_tensors(network: nn.Module, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The entries that are weights of `network`; TensorMismatch unless every weight has one, of its shape and kind.

    Weights that are one parameter under several names need one entry; buffers that the constructor made need none.
    Entries that are no weights of this network give a warning that names some.
    """
    expected: dict[str, torch.Tensor] = network.state_dict(keep_vars=True)
    filled = {id(tensor) for name, tensor in expected.items() if name in entries}
    missing = [name for name, tensor in expected.items() if tensor.is_meta and id(tensor) not in filled]
    surplus = [name for name in entries if name not in expected]
    different = [n for n, tensor in expected.items() if n in entries and not _agree(tensor, entries[n])]
    if missing or different:
        first = (
            f"{_files(entries)} does not hold the weights of this {type(network).__name__}: {len(missing)} missing, "
            f"{len(surplus)} unexpected, {len(different)} of another shape or kind; {len(expected)} expected."
        )
        raise TensorMismatch(_fitted(first, {
            "Missing": [f"{n}: expected {_describe(expected[n])}" for n in missing],
            "Unexpected": [f"{_original(n, entries[n])}: found {_describe(entries[n])}" for n in surplus],
            "Different": [
                f"{_original(n, entries[n])}: expected {_describe(expected[n])}, found {_describe(entries[n])}"
                for n in different
            ],
        }, "\nConfig and weights belong to different models, or the checkpoint is incomplete."))  # fmt: skip
    if surplus:
        warn(_stray(network, entries, surplus))
    return {name: entry for name, entry in entries.items() if name in expected}


def _stray(network: nn.Module, entries: Mapping[str, TensorEntry], surplus: list[str]) -> str:
    some = ", ".join(to_length(entries[name].name, 80) for name in surplus[:3])
    more = f" and {len(surplus) - 3} more" if len(surplus) > 3 else ""
    return (
        f"{_files(entries)} holds {len(surplus)} tensors that this {type(network).__name__} has no weights for: {some}"
        f"{more}. They are left out. If pictures are wrong, config and weights belong to different models."
    )


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
    name = to_length(files[0], 120)
    return name + (f" (with {len(files) - 1} more shards)" if len(files) > 1 else "")


def _original(name: str, entry: TensorEntry) -> str:
    name = to_length(name, 80)
    return name if entry.name == name else f"{name} (in the file: {to_length(entry.name, 80)})"


def _describe(thing: torch.Tensor | TensorEntry) -> str:
    return f"{dtype_name(thing.dtype)} {show(tuple(thing.shape))}"


def _fitted(first: str, lists: Mapping[str, list[str]], last: str) -> str:
    """The message with as many lines of each list as fit, up to five."""
    message = first + last
    for count in (1, 2, 3, 5):
        longer = first + "".join(_listing(title, lines, count) for title, lines in lists.items()) + last
        if len(longer) > LONGEST_MESSAGE and count > 1:
            break
        message = longer
    return message


def _listing(title: str, lines: list[str], count: int) -> str:
    if not lines:
        return ""
    more = f"\n  … and {len(lines) - count} more" if len(lines) > count else ""
    return f"\n{title}:" + "".join(f"\n  {line}" for line in lines[:count]) + more
