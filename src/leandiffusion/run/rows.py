"""Inputs of the UNet for other rows of a batch: some of them, or some twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..modules.perturbed import Perturbed


def taken(values: Any, count: int, rows: list[int]) -> Any:
    """The same nest of inputs with those rows of each tensor that has `count`; of one with fewer, those of its
    pictures."""
    if isinstance(values, Tensor):
        return _rows(values, count, rows)
    if isinstance(values, Perturbed):
        return values.of(count, rows)
    if isinstance(values, Mapping):
        return {name: taken(value, count, rows) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(taken(value, count, rows) for value in values)
    return values


def _rows(tensor: Tensor, count: int, rows: list[int]) -> Tensor:
    if not tensor.dim() or not len(tensor) or count % len(tensor):
        return tensor
    return tensor[[row % len(tensor) for row in rows]]
