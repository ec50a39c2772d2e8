"""Networks without weights whose heavy layers compute in parts, as those do whose weights travel (`offload.parts`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..offload.parts import computed_in_parts, output_dim
from ..offload.units import weight_bytes
from ..techniques.hooks import around_forward, own_forward


@contextmanager
def in_parts(networks: Iterable[nn.Module | None], part_bytes: int | None) -> Iterator[None]:
    """Meanwhile layers with more bytes of weights than that compute in parts; none of them where it is None."""
    if part_bytes is None:
        yield
        return

    def run(module: nn.Module, forward: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        return computed_in_parts(module, part_bytes, forward, args, kwargs)

    modules = (module for network in networks if network is not None for module in network.modules())
    heavy = [m for m in modules if output_dim(m) is not None and weight_bytes(m) > part_bytes]
    for module in heavy:
        around_forward(module, run, only_moves=True)
    try:
        yield
    finally:
        for module in heavy:
            own_forward(module, run)
