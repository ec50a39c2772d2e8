"""Where a network's weights are, on disk or in memory, and moving them between the two.

A parameter stays the same object wherever its values are, so that references to it stay valid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..core.fork import Lock
from .build import as_parameter, put_tensor, swap, tensor_bytes
from .header import TensorEntry
from .opened import OpenFile, Stamp
from .stored import StoredTensor

_reading = Lock()
_OWN_USES = 2  # of a storage that nothing but its tensor refers to, while it is asked for


def names_on_disk(network: nn.Module) -> list[str]:
    """Names of the parameters and buffers that are on disk, except those that opening left out."""
    out = left_out(network)
    return [n for n, tensor in tensors_of(network).items() if _of_a_file(tensor) and id(tensor) not in out]


def left_out(network: nn.Module) -> set[int]:
    """Ids of the parameters on disk that opening left out, since they are probably not needed: they stay there."""
    names: Collection[str] = getattr(getattr(network, "_origin", None), "left_out", ())
    return {id(tensor) for name, tensor in tensors_of(network).items() if name in names and is_on_disk(tensor)}


@dataclass
class FirstUse:
    """Whether a network's first use is still to come, which reads its weights. Copies of the network have their own."""

    waits: bool


def is_waiting(network: nn.Module) -> bool:
    """Whether the network was opened and its weights were not read yet: its first use reads them."""
    first_use: FirstUse | None = getattr(network, "_first_use", None)
    return first_use is not None and first_use.waits


def wait_for_use(network: nn.Module) -> None:
    """Have the network's first use read its weights."""
    object.__setattr__(network, "_first_use", FirstUse(True))


def wait_no_longer(network: nn.Module) -> None:
    """Its weights were read, or will be by somebody else."""
    if is_waiting(network):
        network._first_use.waits = False  # type: ignore[union-attr]


def read_weights(networks: Iterable[nn.Module]) -> None:
    """Load the weights of those networks that wait for their first use, each to the device that it was moved to.

    Raises what reading them raises; what was read until then stays, and the next use goes on from there. A bar shows
    the progress where it takes longer than two seconds.
    """
    waiting = [network for network in networks if is_waiting(network)]
    if not waiting:
        return
    with tqdm(
        total=sum(map(tensor_bytes, waiting)), unit="B", unit_scale=True, delay=2, leave=False, disable=None,
        desc="Reading weights",
    ) as bar, _reading:  # fmt: skip
        for network in waiting:
            if is_waiting(network):  # and not read by another thread meanwhile
                load_from_disk(network, progress=bar.update)
                wait_no_longer(network)


def load_from_disk(
    network: nn.Module,
    device: torch.device | None = None,
    *,
    only: Collection[int] | None = None,
    progress: Callable[[int], Any] = lambda count: None,
) -> set[int]:
    """Load every weight that is on disk into memory, on its own device unless one is given; returns their ids.

    All except those that opening left out, or with `only` those of these ids; in the order of the files' bytes. If one
    fails, those before it stay loaded. `progress` is called with the bytes done.
    """
    read, out = set(), left_out(network)
    stored = [(names, tensor) for names, tensor in _by_identity(network) if _of_a_file(tensor)]
    for names, tensor in sorted(stored, key=lambda one: (one[1].entry.file, one[1].entry.start)):
        if id(tensor) not in out if only is None else id(tensor) in only:
            put_tensor(network, names, tensor.hold().detach().to(device or tensor.device))
            read.add(id(network.get_parameter(names[0])))
            progress(tensor.nbytes)
    return read


def stay_on_disk(network: nn.Module) -> None:
    """Have the weights that are on disk stay there, whoever reads them."""
    for tensor in tensors_of(network).values():
        if isinstance(tensor, StoredTensor):
            tensor.held.keeps = False


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
    files: dict[Path, OpenFile] = {}
    kept: list[str] = []
    for names, tensor in _by_identity(network):
        if id(tensor) in leave or not isinstance(tensor, nn.Parameter) or is_on_disk(tensor):
            continue
        name = next((n for n in names if n in entries), None)
        entry = None if name is None else entries[name].reshaped(tuple(tensor.shape))
        if entry is not None and entry.file not in files:
            files[entry.file] = OpenFile.at(entry.file, stamps.get(entry.file))
        if entry is None or not _release_one(tensor, entry, files[entry.file]):
            kept.append(names[0])
        progress(tensor.nbytes)
    return kept


def _release_one(weight: nn.Parameter, entry: TensorEntry, file: OpenFile) -> bool:
    """Make the parameter a stored tensor, if the file holds its values and nothing shares its memory."""
    numbers = weight.held.value if isinstance(weight, StoredTensor) else weight.detach()
    stored = StoredTensor(entry, file, weight.dtype, weight.stride())
    if numbers is None or has_other_users(numbers, weight) or not same_bits(stored.read(), numbers.cpu()):
        return False
    return swap(weight, as_parameter(stored, weight.requires_grad))


def has_other_users(numbers: Tensor, weight: Tensor) -> bool:
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


def _of_a_file(tensor: Tensor) -> TypeGuard[StoredTensor]:
    """Whether the tensor was opened from a file and did not become a plain one since."""
    return isinstance(tensor, StoredTensor) and isinstance(tensor.file, OpenFile)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype hold the same numbers, NaN being the same as NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones under each of their names; nothing is read."""
    return nn.Module.state_dict(network, keep_vars=True)


def _by_identity(network: nn.Module) -> Iterable[tuple[list[str], Tensor]]:
    """Every parameter and buffer once, with all the names it goes by."""
    tensors = tensors_of(network)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return [(aliases, tensors[aliases[0]]) for aliases in names.values()]
