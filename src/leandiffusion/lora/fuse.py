"""Merging adapters into weights, and giving the weights back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, NonFiniteError
from ..offload.engine import engine_of
from ..weights.build import put_tensor
from ..weights.load import origin_of
from ..weights.packed import unpack
from ..weights.residence import read_weights, release_to_disk
from ..weights.stored import StoredTensor, numbers_of
from .adapters import Adapters
from .weights import weight_in


def fuse(network: nn.Module, adapters: Adapters, names: list[str], scale: float, *, check: bool = False) -> Adapters:
    """Add what adapters of those names change to the weights; returns the adapters that say so.

    The former weights stay in the checkpoint where they are there as they are in memory; others are kept in memory.
    One layer's change is in memory at a time, computed in float32. NonFiniteError with `check`, before anything is
    changed for good, where a sum is not finite.
    """
    read_weights([network])
    fused = adapters.copy()
    fused.fused = dict(adapters.fused)
    fused.fused_names = (*adapters.fused_names, *(name for name in names if name not in adapters.fused_names))
    fused.placed = None
    try:
        for layer in _layers(adapters, names):
            module = network.get_submodule(layer)
            total = _changed(module, adapters, names, layer, scale)
            if check and not torch.isfinite(total).all():
                raise NonFiniteError(
                    f"{layer} with {', '.join(names)} merged holds NaN or infinity: nothing is merged."
                )
            former = _given_up(network, module, layer)
            fused.fused.setdefault(layer, former)
            put_tensor(network, [f"{layer}.weight"], total)
    except BaseException:
        _give_back(network, {layer: former for layer, former in fused.fused.items() if layer not in adapters.fused})
        raise
    return fused


def unfuse(network: nn.Module, adapters: Adapters) -> Adapters:
    """Give the network its former weights back; returns its adapters, which add to layers again."""
    _give_back(network, adapters.fused)
    plain = adapters.copy()
    plain.fused, plain.fused_names, plain.placed = {}, (), None
    return plain


def check_fusible(name: str, network: nn.Module) -> None:
    """ConfigError for a network whose weights travel from disk: merged ones are not there."""
    engine = engine_of(network)
    if engine is not None and engine.policy.from_disk:
        raise ConfigError(
            f"weights of the {name} travel from the checkpoint on disk, where no merged ones are: leave the adapters "
            "loaded, which draws the same and takes their own size in memory at most; or switch offloading off first."
        )


def _layers(adapters: Adapters, names: list[str]) -> list[str]:
    return list(dict.fromkeys(layer for name in names for layer in adapters.loaded[name]))


def _changed(module: nn.Module, adapters: Adapters, names: list[str], layer: str, scale: float) -> Tensor:
    weight: Any = module.weight
    total = numbers_of(weight).to(torch.float32, copy=True)
    for name in names:
        piece = adapters.loaded[name].get(layer)
        if piece is not None:
            factors = {factor: source.read(torch.float32, total.device) for factor, source in piece.factors.items()}
            share = scale * piece.scale * weight_in(layer, adapters.weights.get(name, 1.0))
            total += share * piece.kind.delta(factors).reshape(total.shape)
    return total.to(weight.dtype)


def _given_up(network: nn.Module, module: nn.Module, layer: str) -> Tensor:
    """The layer's weight as it is to come back: in the checkpoint if it is there, else in memory."""
    unpack(module)
    origin, weight = origin_of(network), module.weight
    name = f"{layer}.weight"
    if origin is not None and name in origin.entries:
        others = {id(p) for p in network.parameters() if p is not weight}
        release_to_disk(network, origin.entries, origin.stamps, leave=others)
    kept: Any = module.weight
    return kept.like(kept.dtype, kept.stride()) if isinstance(kept, StoredTensor) else kept.detach()


def _give_back(network: nn.Module, formers: Mapping[str, Tensor]) -> None:
    engine = engine_of(network)
    from_disk = engine is not None and engine.policy.from_disk
    for layer, former in formers.items():
        module = network.get_submodule(layer)
        unpack(module)
        now: Any = module.weight
        if isinstance(former, StoredTensor):
            stored = former.like(now.dtype, now.stride())
            tensor = stored if from_disk else stored.read().to(now.device)
        else:
            tensor = torch.empty_strided(now.shape, now.stride(), dtype=now.dtype, device=now.device).copy_(former)
        put_tensor(network, [f"{layer}.weight"], tensor)
