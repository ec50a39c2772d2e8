"""Gaussian noise that depends on the seed alone, not on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.errors import ConfigError
from ..device.host import is_host
from ..device.names import HOST

Generators = torch.Generator | list[torch.Generator] | None


def randn(
    shape: Sequence[int],
    *,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Standard normal tensor of `shape` (first axis: batch) on `device`.

    A CPU generator draws on the CPU and the result is moved, so one seed gives one picture on every device. A list
    holds one generator per batch entry, each drawing its own entry; a list of one draws the whole batch.

    Raises ConfigError when the list is of another length than the batch, or a generator of one accelerator is asked
    for a tensor on another device.
    """
    device = torch.device(device or "cpu")
    generators = generator if isinstance(generator, list) else [generator]
    if len(generators) == 1:
        return _draw(shape, generators[0], device, dtype)
    if len(generators) != shape[0]:
        raise ConfigError(
            f"{len(generators)} generators for a batch of {shape[0]}: pass one generator, or a list with one for each."
        )
    return torch.cat([_draw((1, *shape[1:]), each, device, dtype) for each in generators])


def _draw(
    shape: Sequence[int], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype | None
) -> torch.Tensor:
    source = device if generator is None else generator.device
    if not is_host(source) and source.type != device.type:
        raise ConfigError(
            f"a generator on {source} cannot make a tensor on {device}: use torch.Generator('cpu') or one on {device}."
        )
    drawn_on = HOST if is_host(source) else device
    return torch.randn(tuple(shape), generator=generator, device=drawn_on, dtype=dtype).to(device)
