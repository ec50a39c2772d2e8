"""Keys and values of the text, which are the same at every step of a drawing: each layer projects it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .blocks import in_place_allowed, is_untouched
from .linear import Linear
from .lora import LoraLinear

if TYPE_CHECKING:
    from .transformer import Attention


class TextMemory:
    """What the layers of a UNet made of one text (B, S, C): 15 MiB in float32 for Stable Diffusion 1.5 and guidance.

    It belongs to one drawing, and is made anew where weights or text may have changed.
    """

    def __init__(self, text: Tensor) -> None:
        self.text = text
        self._made: dict[int, tuple[Attention, Tensor, Tensor]] = {}
        self._derived: list[TextMemory] = []

    def derived(self, text: Tensor) -> TextMemory:
        """A memory of another text, made of this one, that is cleared with it."""
        self._derived.append(TextMemory(text))
        return self._derived[-1]

    def clear(self) -> None:
        """Let go of what was made, and of what those derived from it hold."""
        self._made.clear()
        for each in self._derived:
            each.clear()
        self._derived.clear()

    def of(self, layer: Attention) -> tuple[Tensor, Tensor]:
        """The layer's keys and values of the text, (B, S, nh * hs) each."""
        made = self._made.get(id(layer))
        if made is None:
            made = self._made[id(layer)] = layer, layer.to_k(self.text), layer.to_v(self.text)
        return made[1:]


_current: ContextVar[TextMemory | None] = ContextVar("text memory", default=None)


def current_memory() -> TextMemory | None:
    """What `remembering` said last, in this thread."""
    return _current.get()


@contextmanager
def remembering(memory: TextMemory | None) -> Iterator[None]:
    """Have the UNet that is called meanwhile, in this thread, use the memory for its text; None for no memory."""
    token = _current.set(memory)
    try:
        yield
    finally:
        _current.reset(token)


def keys_and_values(layer: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
    """`to_k` and `to_v` of the context (B, S, C), from memory where it is the text that is remembered.

    Not while a graph is recorded, and not where the layers are another's or somebody looks on.
    """
    if torch.compiler.is_compiling() or not in_place_allowed():
        return layer.to_k(context), layer.to_v(context)
    memory = _current.get()
    if memory is None or memory.text is not context or not all(_is_plain(each) for each in (layer.to_k, layer.to_v)):
        return layer.to_k(context), layer.to_v(context)
    return memory.of(layer)


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) in (Linear, LoraLinear) and is_untouched(layer)
