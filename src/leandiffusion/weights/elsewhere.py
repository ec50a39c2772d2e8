"""Finds the files from which another library read a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from ..core.errors import WeightsError
from .files import variants_of, weight_files
from .header import TensorEntry, read_headers
from .load import Origin
from .opened import stamp_of

STEMS = ("diffusion_pytorch_model", "model")


def find_origin(network: nn.Module) -> Origin | None:
    """Where `network` was read from, by what its config remembers (`_name_or_path`, as diffusers and transformers write
    it); None where no safetensors with its weights lie there.

    Of several variants the one in the network's own dtype is taken. Values are not compared here, but by
    `weights.residence.release_to_disk`.
    """
    config = getattr(network, "config", None)
    folder = getattr(config, "_name_or_path", None)
    if not isinstance(folder, str) or not folder or not Path(folder).is_dir():
        return None
    found = [named for entries in _checkpoints(Path(folder)) if (named := _named(network, entries))]
    if not found:
        return None
    entries = max(found, key=lambda named: _agreement(network, named))
    stamps = {file: stamp_of(file) for file in {entry.file for entry in entries.values()}}
    return Origin(type(network), {}, entries, stamps=stamps)


def _checkpoints(folder: Path) -> Iterator[dict[str, TensorEntry]]:
    names = sorted(path.name for path in folder.iterdir())
    for stem in STEMS:
        for variant in variants_of(names, stem):
            try:
                yield read_headers(weight_files(folder, stem, variant=variant))
            except WeightsError:  # damaged, or shards are missing: it is not what was read
                continue


def _named(network: nn.Module, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The entries by the network's own names, as far as shapes agree.

    A file may have the whole network below a name of its own, such as 'text_model.', or lack such a name.
    """
    weights: dict[str, Tensor] = network.state_dict(keep_vars=True)
    prefixes = ["", *sorted({name.split(".", 1)[0] + "." for name in entries})]
    named: dict[str, TensorEntry] = {}
    for name, tensor in weights.items():
        candidates = [prefix + name for prefix in prefixes] + [name.split(".", 1)[-1]]
        entry = next((entries[each] for each in candidates if each in entries), None)
        if entry is not None and entry.shape == tuple(tensor.shape):
            named[name] = entry
    return named


def _agreement(network: nn.Module, named: Mapping[str, TensorEntry]) -> tuple[int, int]:
    weights: dict[str, Tensor] = network.state_dict(keep_vars=True)
    return len(named), sum(entry.dtype == weights[name].dtype for name, entry in named.items())
