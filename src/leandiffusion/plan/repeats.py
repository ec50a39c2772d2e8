"""Blocks that are built alike, of which one is traced for all: a UNet has some ten in each of a few shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.shapes import repeated
from ..modules.blocks import ResnetBlock2D
from ..modules.clip import CLIPEncoderLayer
from ..modules.transformer import BasicTransformerBlock, Transformer2DModel
from ..modules.vae_blocks import AttentionBlock
from ..techniques.hooks import Around, around_forward, own_forward

BLOCKS = (ResnetBlock2D, Transformer2DModel, BasicTransformerBlock, AttentionBlock, CLIPEncoderLayer)
"""Kinds of them. What they compute depends on how they are built and on what they are called with, on which layer it is
only where `extra` inputs say so; and they give one new tensor."""

_TABLES = ("_parameters", "_buffers", "_modules")
_PLUMBING = frozenset(vars(nn.Module())).difference(_TABLES, ("training",))


@contextmanager
def repeated_blocks(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Meanwhile blocks of these networks that are built alike, and called with the same shapes, are traced once."""
    shapes = _Shapes()

    def run(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if any(isinstance(value, Mapping) and value for value in given):  # which may be about this one layer
            return forward(*args, **kwargs)
        which = tuple(id(value) for value in given[1:] if isinstance(value, Tensor))  # keys of a text are looked up
        return repeated((shapes.of(module), which), forward, args, kwargs)

    blocks = [module for network in networks for module in network.modules() if isinstance(module, BLOCKS)]
    for block in blocks:
        around_forward(block, run, only_moves=True)
    try:
        yield
    finally:
        for block in blocks:
            own_forward(block, run)


class _Shapes:
    """Numbers for modules, the same for those that do the same: with layers of the same kinds, settings and hooks, and
    weights of the same shapes. Modules may not change meanwhile."""

    def __init__(self) -> None:
        self._by_module: dict[int, int] = {}
        self._by_look: dict[Any, int] = {}

    def of(self, module: nn.Module) -> int:
        """The module's number."""
        number = self._by_module.get(id(module))
        if number is None:
            number = self._by_module[id(module)] = self._by_look.setdefault(self._look(module), len(self._by_look))
        return number

    def _look(self, module: nn.Module) -> Any:
        own = vars(module)
        weights = [(n, *_weight(t)) for table in _TABLES[:2] for n, t in own[table].items()]
        layers = [(n, None if child is None else self.of(child)) for n, child in own["_modules"].items()]
        told = [(n, v) for n, v in own.items() if n not in _TABLES and (n not in _PLUMBING or v)]
        settings = [(n, id(v) if n in _PLUMBING else self._setting(v)) for n, v in told]
        return type(module), *weights, *layers, *settings

    def _setting(self, value: Any) -> Any:
        """Equal for values that mean the same: else each is its own."""
        if isinstance(value, Around):
            return value.run, value.only_moves, self._setting(value.inner)
        if isinstance(value, list):
            return tuple(map(self._setting, value))
        return value if value.__hash__ is not None else id(value)


def _weight(tensor: Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return (None,)
    return type(tensor), tensor.dtype, tensor.shape, tensor.stride(), isinstance(tensor, torch.nn.Parameter)
