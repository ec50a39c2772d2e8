"""Save networks as config.json and safetensors, sharded when large: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.config import write_json
from ..core.errors import ConfigError
from ..core.replacing import Replacement
from ..core.units import parse_bytes
from .files import stale_weights
from .residence import tensors_of
from .stored import StoredTensor

_METADATA = {"format": "pt"}  # transformers refuses files without it


def save_network(
    network: nn.Module, folder: str | Path, *, variant: str | None = None, max_shard_size: int | str = "10GB"
) -> None:
    """Write the network's config and weights into `folder`, in shards no larger than `max_shard_size`.

    Earlier weights of that variant are replaced once all is on disk; an interrupted save leaves them, or is completed
    when the folder is next opened. Other files stay.

    Raises ConfigError for weights without data (on the meta device) and for a size that cannot be parsed.
    """
    folder = Path(folder)
    limit = parse_bytes(max_shard_size)
    state = tensors_of(network)  # those on disk are read one at a time
    if empty := [name for name, tensor in state.items() if tensor.is_meta]:
        raise ConfigError(f"{empty[0]!r} has no data (it is on the meta device): load the weights before saving.")
    stem: str = getattr(network, "weights_stem", "diffusion_pytorch_model")
    with Replacement(folder, partial(stale_weights, variant=variant)) as new:
        if hasattr(network, "save_config"):
            network.save_config(new.place())  # type: ignore[operator]
        save_tensors(state, new.place(), stem, variant=variant, limit=limit)


def save_tensors(state: dict[str, Tensor], folder: Path, stem: str, *, variant: str | None, limit: int) -> None:
    """Write tensors as `stem`[.variant].safetensors, or as shards of at most `limit` bytes with an index.

    `folder` should be a new one: what is in it is written over.
    """
    shards = _split(state, limit)
    tag = f".{variant}" if variant else ""
    if len(shards) == 1:
        names = [f"{stem}{tag}.safetensors"]
    else:
        names = [f"{stem}{tag}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard)
    if len(shards) > 1:
        index = f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json"
        write_json(folder / index, _index(names, shards))


def _split(state: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Fill shards in order, each to at most `limit` bytes; a tensor larger than that gets its own."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write(path: Path, shard: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # by the user's umask: the library makes files that only the owner can read
    save_file(dict(_storable(shard)), path, metadata=_METADATA)
    path.chmod(mode)


def _storable(shard: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor dense, on the CPU and with memory of its own: the format knows neither strides nor sharing."""
    seen: set[int] = set()
    for name, tensor in shard.items():
        tensor = tensor.detach()
        tensor = tensor.read() if isinstance(tensor, StoredTensor) else tensor
        tensor = tensor.cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        yield name, tensor.clone() if storage in seen else tensor
        seen.add(storage)


def _index(names: list[str], shards: list[dict[str, Tensor]]) -> dict[str, Any]:
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}
