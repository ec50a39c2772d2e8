"""One text that a run is conditioned on."""

from __future__ import annotations

from torch import Tensor

from ..modules.text_memory import TextMemory
from .conditioning import Conditioning, Tensors


class Text:
    """A text's `tensors` by the names that callbacks use, what the UNet gets of them, and what its layers made of
    it."""

    def __init__(self, tensors: Tensors, conditioning: Conditioning) -> None:
        self.tensors, self.conditioning = tensors, conditioning
        self.memory = TextMemory(conditioning.embeds)

    def memory_of(self, embeds: Tensor) -> TextMemory:
        """The memory for `embeds` (B, T, C), the whole text or its conditional half: one of them at a time."""
        if self.memory.text is not embeds:
            self.memory = TextMemory(embeds)
        return self.memory

    def forget(self) -> None:
        """Forget what layers made of it."""
        self.memory.clear()
        self.memory = TextMemory(self.conditioning.embeds)
