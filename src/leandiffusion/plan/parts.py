"""Networks without weights that compute as those do whose layers travel: heavy ones in parts (`offload.parts`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..offload.parts import computed_in_parts, output_dim
from ..techniques.hooks import around_forward, own_forward


@contextmanager
def travelling_layers(networks: Iterable[nn.Module | None], part_bytes: int | None) -> Iterator[None]:
    """Meanwhile layers compute as if their weights travelled, those with more bytes of them than that in parts. Nothing
    changes where it is None."""
    if part_bytes is None:
        yield
        return

    def run(module: nn.Module, forward: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        return computed_in_parts(module, part_bytes, forward, args, kwargs)

    modules = (module for network in networks if network is not None for module in network.modules())
    layers = [module for module in modules if output_dim(module) is not None]
    for module in layers:
        around_forward(module, run, only_moves=True)
    try:
        yield
    finally:
        for module in layers:
            own_forward(module, run)
