"""Open networks: build empty, check names and shapes from the headers alone, then read each tensor into place.

The peak of memory is the loaded weights and one small buffer, whatever the dtype in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..core.config import read_json
from ..core.errors import CheckpointNotFound, ConfigError, WeightsError
from ..core.malloc import TrimsAtEnd
from .build import build_empty, drop_submodules, put_tensor
from .check import check_tensors, named_for
from .files import weight_files
from .header import TensorEntry, read_headers
from .opened import OpenFile, Stamp, stamp_of
from .read import TensorReader
from .stored import StoredTensor

N = TypeVar("N", bound=nn.Module)
Skip = Sequence[str] | Callable[[str], bool]


@dataclass(frozen=True)
class Origin:
    """Where a network's weights lie on disk, by parameter name, so that they can be read again or later.

    `absent` names the submodules that were left out; `stamps` are size and modification time of each file.
    """

    cls: type[nn.Module]
    config: Mapping[str, Any]
    entries: Mapping[str, TensorEntry]
    absent: tuple[str, ...] = ()
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)

    def check_unchanged(self) -> None:
        """WeightsError when a file has gone or was written since the network was opened."""
        for file, stamp in self.stamps.items():
            if not file.is_file() or stamp_of(file) != stamp:
                raise WeightsError(
                    f"{file} has {'changed' if file.is_file() else 'gone'} since the network was opened from it: "
                    "open the network again."
                )


def open_network(
    cls: type[N],
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    skip: Skip | None = None,
    on_disk: bool = False,
) -> N:
    """The network in `folder` (a config.json and safetensors), in eval mode.

    `dtype` is what floating-point tensors become on their way from the file, None keeps the file's. `skip` names
    parts that are not wanted, by prefixes of parameter names (`("encoder.",)`) or a predicate on them: those
    submodules are None afterwards, and `load_part` brings them. `on_disk` leaves the weights in their files, to be read
    when they are used (`weights.stored`).

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
        cls, config, entries, source=str(folder / name), dtype=dtype, device=device, skip=skip, on_disk=on_disk
    )


def fill_network(
    cls: type[N],
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    *,
    source: str = "config",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    skip: Skip | None = None,
    on_disk: bool = False,
) -> N:
    """A network of that class and config whose weights are `entries` (by parameter name). See `open_network`.

    `source` says in messages where the config comes from.
    """
    network = _empty(cls, config, source)
    entries = check_tensors(network, entries)
    skipped = _predicate(skip)
    absent = drop_submodules(network, lambda name: not skipped(name)) if skip else []
    stamps = {file: stamp_of(file) for file in {entry.file for entry in entries.values()}}
    reader = TensorReader(dtype, torch.device(device or "cpu"))
    _read_into(network, entries, reader, stamps if on_disk else None)
    object.__setattr__(network, "_origin", Origin(cls, config, entries, tuple(absent), stamps))
    object.__setattr__(network, "_at_end", TrimsAtEnd())
    return network.eval()


def load_part(network: nn.Module, *parts: str) -> None:
    """Load submodules that `skip` left out, at the network's dtype and device; all of them when none is named.

    Raises ConfigError for a name that is not one of those, and WeightsError when the files have gone or changed. The
    network is not touched unless everything was read.
    """
    origin = origin_of(network)
    absent = origin.absent if origin else ()
    wanted = [part.rstrip(".") for part in parts] or list(absent)
    if unknown := [name for name in wanted if name not in absent]:
        raise ConfigError(f"{unknown[0]!r} was not left out when this network was opened. Left out: {list(absent)}.")
    if origin is None or not wanted:
        return
    origin.check_unchanged()
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    reader = TensorReader(like.dtype, like.device)
    complete = _empty(origin.cls, origin.config, "config")
    fresh = {name: complete.get_submodule(name) for name in wanted}
    for name, module in fresh.items():
        below = {n.removeprefix(f"{name}."): e for n, e in origin.entries.items() if n.startswith(f"{name}.")}
        _read_into(module, below, reader)
    for name, module in fresh.items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, module.train(network.training))
    left = tuple(name for name in absent if name not in wanted)
    object.__setattr__(network, "_origin", replace(origin, absent=left))


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


def _empty(cls: type[N], config: Mapping[str, Any], source: str) -> N:
    build: Callable[..., N] = cls.from_config  # type: ignore[attr-defined]
    try:
        return build_empty(lambda: build(config))
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ConfigError(f"{source} does not describe a {cls.__name__}: {error}") from error


def _predicate(skip: Skip | None) -> Callable[[str], bool]:
    if callable(skip):
        return skip
    prefixes = tuple(skip or ())
    return lambda name: name.startswith(prefixes)


def _read_into(
    network: nn.Module,
    entries: Mapping[str, TensorEntry],
    reader: TensorReader,
    leave: Mapping[Path, Stamp] | None = None,
) -> None:
    """Fill every weight of `network` that has an entry, and give its computed buffers the same dtype and device.

    With `leave`, the stamps of the files, parameters stay there as stored tensors.
    """
    aliases: dict[int, list[str]] = {}  # one parameter may stand under several names
    state = network.state_dict(keep_vars=True)
    for name, tensor in state.items():
        aliases.setdefault(id(tensor), []).append(name)
    wanted: dict[str, TensorEntry] = {}
    for names in aliases.values():
        if name := next((n for n in names if n in entries), None):
            wanted[name] = entries[name].reshaped(tuple(state[name].shape))
    if leave is not None:
        on_disk = {name: entry for name, entry in wanted.items() if isinstance(state[name], nn.Parameter)}
        files = {path: OpenFile.at(path, leave[path]) for path in {entry.file for entry in on_disk.values()}}
        for name, entry in on_disk.items():
            stored = StoredTensor(entry, files[entry.file], reader.target_dtype(entry.dtype))
            put_tensor(network, aliases[id(state[name])], stored)
            del wanted[name]
    for name, tensor in reader.read_all(wanted):
        put_tensor(network, aliases[id(state[name])], tensor)
    for name, buffer in list(network.named_buffers()):
        if name not in wanted:
            put_tensor(network, [name], buffer.to(reader.device, reader.target_dtype(buffer.dtype)))
