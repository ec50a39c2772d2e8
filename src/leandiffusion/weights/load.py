"""Open networks: build empty, check names and shapes from the headers alone, then read each tensor into place.

The peak of memory is the loaded weights and one small buffer, whatever the dtype in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..core.config import read_json
from ..core.errors import CheckpointNotFound, ConfigError
from ..core.malloc import TrimsAtEnd
from ..device.host import is_host
from .build import build_empty, put_tensor
from .check import check_tensors, named_for
from .files import weight_files
from .header import TensorEntry, read_headers
from .opened import OpenFile, Stamp, stamp_of
from .read import TensorReader
from .residence import wait_for_use
from .stored import StoredTensor

N = TypeVar("N", bound=nn.Module)
LeaveOut = Sequence[str] | Callable[[str], bool]


@dataclass(frozen=True)
class Origin:
    """Where a network's weights lie on disk, by parameter name, so that they can be read again or later.

    `left_out` are parameters that stay on disk until something uses them, also when the others are loaded; `stamps` are
    size and modification time of each file.
    """

    cls: type[nn.Module]
    config: Mapping[str, Any]
    entries: Mapping[str, TensorEntry]
    left_out: frozenset[str] = frozenset()
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)


def open_network(
    cls: type[N],
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    leave_out: LeaveOut | None = None,
    on_disk: bool = False,
) -> N:
    """The network in `folder` (a config.json and safetensors), in eval mode.

    `dtype` is what floating-point tensors are cast to while they are read, None keeps the file's. `leave_out` names
    parts that are probably not needed, by prefixes of parameter names (`("encoder.",)`) or a predicate on them: those
    weights stay in their files, take no memory, and are read whenever they are used (`weights.stored`). `on_disk`
    leaves all of them there until the first use (`weights.residence.read_weights`), unless `device` is another than
    the CPU.

    Raises CheckpointNotFound, ConfigError for an invalid config, MalformedFile for broken files, TensorMismatch when
    weights are missing or of another shape, UnsafeFormat for pickles. Nothing is read before names and shapes are found
    to agree. Tensors that are no weights of the network give a warning.
    """
    folder = Path(folder)
    name: str = getattr(cls, "config_name", "config.json")
    config = read_config(folder, name) | dict(config_overrides or {})
    stem: str = getattr(cls, "weights_stem", "diffusion_pytorch_model")
    files = weight_files(folder, stem, variant=variant, use_safetensors=use_safetensors)
    entries = named_for(cls, read_headers(files))
    return fill_network(
        cls,
        config,
        entries,
        config_source=str(folder / name),
        dtype=dtype,
        device=device,
        leave_out=leave_out,
        on_disk=on_disk,
    )


def fill_network(
    cls: type[N],
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    *,
    config_source: str = "config",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    leave_out: LeaveOut | None = None,
    on_disk: bool = False,
) -> N:
    """A network of that class and config whose weights are `entries` (by parameter name). See `open_network`.

    `config_source` says in messages where the config comes from.
    """
    network = _empty(cls, config, config_source)
    entries = check_tensors(network, entries)
    is_left_out = _predicate(leave_out)
    left_out = frozenset(name for name, _ in network.named_parameters(remove_duplicate=False) if is_left_out(name))
    stamps = {file: stamp_of(file) for file in {entry.file for entry in entries.values()}}
    reader = TensorReader(dtype, torch.device(device or "cpu"))
    on_disk = on_disk and is_host(reader.device)
    _read_into(network, entries, reader, (lambda name: True) if on_disk else is_left_out, left_out, stamps)
    if on_disk:
        wait_for_use(network)
    object.__setattr__(network, "_origin", Origin(cls, config, entries, left_out, stamps))
    object.__setattr__(network, "_at_end", TrimsAtEnd())
    return network.eval()


def origin_of(network: nn.Module) -> Origin | None:
    """Where the network was opened from; None when it was built by its constructor."""
    return getattr(network, "_origin", None)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A component's settings. CheckpointNotFound when folder or file is not there, MalformedFile when broken."""
    if not folder.is_dir():
        raise CheckpointNotFound(f"no such folder: {folder}")
    if not (folder / name).is_file():
        present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointNotFound(f"{folder} has no {name}, so it is not a component's folder. It holds: {present}.")
    return read_json(folder / name)


def _empty(cls: type[N], config: Mapping[str, Any], config_source: str) -> N:
    build: Callable[..., N] = cls.from_config  # type: ignore[attr-defined]
    try:
        return build_empty(lambda: build(config))
    # Single settings were checked before (core.limits); impossible combinations show in torch's layers too.
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ConfigError(f"{config_source} does not describe a {cls.__name__}: {error}") from error


def _predicate(leave_out: LeaveOut | None) -> Callable[[str], bool]:
    if callable(leave_out):
        return leave_out
    prefixes = tuple(leave_out or ())
    return lambda name: name.startswith(prefixes)


def _read_into(
    network: nn.Module,
    entries: Mapping[str, TensorEntry],
    reader: TensorReader,
    stays: Callable[[str], bool],
    left_out: Collection[str],
    stamps: Mapping[Path, Stamp],
) -> None:
    """Fill every weight of `network` that has an entry, and give its computed buffers the same dtype and device.

    Parameters whose names `stays` picks are left on disk as stored tensors, until their first use unless they are
    `left_out`; `stamps` are those of their files.
    """
    aliases: dict[int, list[str]] = {}  # one parameter may stand under several names
    state = network.state_dict(keep_vars=True)
    for name, tensor in state.items():
        aliases.setdefault(id(tensor), []).append(name)
    wanted: dict[str, TensorEntry] = {}
    for names in aliases.values():
        if name := next((n for n in names if n in entries), None):
            wanted[name] = entries[name].reshaped(tuple(state[name].shape))
    on_disk = {n: entry for n, entry in wanted.items() if isinstance(state[n], nn.Parameter) and stays(n)}
    files = {path: OpenFile.at(path, stamps[path]) for path in {entry.file for entry in on_disk.values()}}
    for name, entry in on_disk.items():
        stored = StoredTensor(entry, files[entry.file], reader.target_dtype(entry.dtype), device=reader.device)
        stored.held.keeps = name not in left_out
        put_tensor(network, aliases[id(state[name])], stored)
        del wanted[name]
    for name, tensor in reader.read_all(wanted):
        put_tensor(network, aliases[id(state[name])], tensor)
    for name, buffer in list(network.named_buffers()):
        if name not in wanted:
            put_tensor(network, [name], buffer.to(reader.device, reader.target_dtype(buffer.dtype)))
