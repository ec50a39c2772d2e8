"""Networks without weights that compute as those do whose layers travel: heavy ones in parts (`offload.parts`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..offload.parts import computed_in_parts, output_dim
from ..offload.units import weight_bytes
from ..techniques.hooks import around_forward, own_forward


@contextmanager
def travelling_layers(networks: Iterable[nn.Module], part_bytes: int | None) -> Iterator[None]:
    """Meanwhile layers compute as if their weights travelled, those with more bytes of them than that in parts. Nothing
    changes where it is None."""
    if part_bytes is None:
        yield
        return

    def in_parts(module: nn.Module, forward: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        return computed_in_parts(module, part_bytes, forward, args, kwargs)

    modules = (module for network in networks for module in network.modules())
    layers = [module for module in modules if output_dim(module) is not None]
    runs = [in_parts if weight_bytes(layer) > part_bytes else _whole for layer in layers]
    for layer, run in zip(layers, runs, strict=True):
        around_forward(layer, run, only_moves=True)
    try:
        yield
    finally:
        for layer, run in zip(layers, runs, strict=True):
            own_forward(layer, run)


def _whole(module: nn.Module, forward: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
    return forward(*args, **kwargs)
