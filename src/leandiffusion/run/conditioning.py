"""What the UNet is conditioned on besides time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor | None]
"""What a run is conditioned on, by the names under which callbacks see and change it."""


@dataclass(frozen=True)
class Conditioning:
    """Text and sizes as the UNet takes them. Under guidance each batch is doubled, its unconditional half first.

    `embeds` (B, T, C); `added` is SDXL's pooled text (B, P) and sizes (B, 6). It never changes: a run whose callback
    changes a tensor goes on with another one, so that what was computed from it can be kept as long as it is the same
    (and nobody wrote into its tensors: their `_version` tells).
    """

    embeds: Tensor
    added: Mapping[str, Tensor] | None = None

    @cached_property
    def conditional(self) -> Conditioning:
        """The conditional half of a doubled batch, for steps without guidance: the same object each time."""
        added = None if self.added is None else {name: tensor.chunk(2)[1] for name, tensor in self.added.items()}
        return Conditioning(self.embeds.chunk(2)[1], added)


def both_halves(unconditional: Tensor | None, conditional: Tensor) -> Tensor:
    """The batch of one step: both halves under guidance, else the conditional one alone."""
    return conditional if unconditional is None else torch.cat([unconditional, conditional])
