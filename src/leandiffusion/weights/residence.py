"""Where a network's weights are, on disk or in memory, and moving them between the two.

A parameter stays the same object wherever its values are, so that references to it stay valid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .build import as_parameter, put_tensor, swap
from .header import TensorEntry
from .opened import OpenFile, Stamp
from .stored import StoredTensor

_OWN_USES = 2  # of a storage that nothing but its tensor refers to, while it is asked for


def names_on_disk(network: nn.Module) -> list[str]:
    """Names of the parameters and buffers that are on disk, except those that opening left out."""
    out = left_out(network)
    return [n for n, tensor in _tensors(network).items() if isinstance(tensor, StoredTensor) and id(tensor) not in out]


def left_out(network: nn.Module) -> set[int]:
    """Ids of the parameters on disk that opening left out, since they are probably not needed: they stay there."""
    names: Collection[str] = getattr(getattr(network, "_origin", None), "left_out", ())
    return {id(tensor) for name, tensor in _tensors(network).items() if name in names and is_on_disk(tensor)}


def load_from_disk(
    network: nn.Module, device: torch.device | None = None, *, only: Collection[int] | None = None
) -> set[int]:
    """Load every weight that is on disk into memory, the CPU's unless `device` is given; returns their ids.

    All except those that opening left out, or with `only` those of these ids. If one fails, those before it stay
    loaded.
    """
    read, out = set(), left_out(network)
    for names, tensor in _by_identity(network):
        if isinstance(tensor, StoredTensor) and (id(tensor) not in out if only is None else id(tensor) in only):
            put_tensor(network, names, tensor.hold().detach().to(device or "cpu"))
            read.add(id(network.get_parameter(names[0])))
    return read


def release_to_disk(
    network: nn.Module,
    entries: Mapping[str, TensorEntry],
    stamps: Mapping[Path, Stamp],
    progress: Callable[[int], Any] = lambda count: None,
    *,
    leave: Collection[int] = (),
) -> list[str]:
    """Free the memory of every parameter whose values are on disk too; returns the others' names.

    A weight that was changed since it was loaded differs from its file, so each is compared before its memory is given
    back. One whose memory is shared (by a view, a numpy array) stays too, so that writes through those are not lost.
    Those whose id() is in `leave` are skipped. `progress` is called with the bytes done.
    """
    files = {path: OpenFile.at(path, stamps.get(path)) for path in {entry.file for entry in entries.values()}}
    kept: list[str] = []
    for names, tensor in _by_identity(network):
        if id(tensor) in leave or not isinstance(tensor, nn.Parameter) or is_on_disk(tensor):
            continue
        name = next((n for n in names if n in entries), None)
        entry = None if name is None else entries[name].reshaped(tuple(tensor.shape))
        if entry is None or not _release_one(tensor, entry, files[entry.file]):
            kept.append(names[0])
        progress(tensor.nbytes)
    return kept


def _release_one(weight: nn.Parameter, entry: TensorEntry, file: OpenFile) -> bool:
    """Make the parameter a stored tensor, if the file holds its values and nothing shares its memory."""
    numbers = weight.held.value if isinstance(weight, StoredTensor) else weight.detach()
    stored = StoredTensor(entry, file, weight.dtype, weight.stride())
    if numbers is None or _has_other_users(numbers, weight) or not same_bits(stored.read(), numbers.cpu()):
        return False
    return swap(weight, as_parameter(stored, weight.requires_grad))


def _has_other_users(numbers: Tensor, weight: Tensor) -> bool:
    """Whether anything but the weight refers to the memory of its `numbers`, as far as torch can tell."""
    if not hasattr(torch._C, "_storage_Use_Count"):
        return False
    uses = torch._C._storage_Use_Count(numbers.untyped_storage()._cdata)  # type: ignore[attr-defined]
    aliases = 0 if isinstance(weight, StoredTensor) else 1  # `numbers` itself is one then
    return uses > _OWN_USES + aliases


def cast(network: nn.Module, dtype: torch.dtype) -> list[tuple[list[str], Tensor]]:
    """Give every floating-point weight that dtype; returns what was replaced, as names and tensor.

    Those on disk stay there and are read as `dtype`; putting the old ones back (`build.put_tensor`) undoes this.
    """
    replaced: list[tuple[list[str], Tensor]] = []
    for names, tensor in _by_identity(network):
        if tensor.is_floating_point():
            stored = isinstance(tensor, StoredTensor)
            fresh = tensor.like(dtype, tensor.stride()) if stored else tensor.detach().to(dtype)
            replaced.append((names, put_tensor(network, names, fresh)))
    return replaced


def is_on_disk(tensor: Tensor) -> bool:
    """Whether the tensor's values are on disk only."""
    return isinstance(tensor, StoredTensor) and tensor.on_disk


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype hold the same numbers, NaN being the same as NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return network.state_dict(keep_vars=True)


def _by_identity(network: nn.Module) -> Iterable[tuple[list[str], Tensor]]:
    """Every parameter and buffer once, with all the names it goes by."""
    tensors = _tensors(network)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return [(aliases, tensors[aliases[0]]) for aliases in names.values()]
