"""Pictures that the UNet attends to beside the text (IP-Adapters: Ye et al. 2023, eq. 5), in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..modules.transformer import Attention
    from .run import Run

KeysAndValues = Mapping[str, tuple[Tensor, Tensor]]
"""By layer of the UNet: what it attends to, (R, S, C) each."""


class ImagePrompt:
    """A control (`run.run.Control`): keys and values of pictures, which each layer attends to besides the text.

    `layers` are the UNet's by name; `seen` has keys and values of each adapter, the unconditional rows first if there
    are any; `weight(i, layer)` is what adapter number i counts in a layer now, asked at each step.
    """

    def __init__(
        self, layers: Mapping[str, Attention], seen: Sequence[KeysAndValues], weight: Callable[[int, str], float]
    ) -> None:
        self._layers = layers
        self._seen = seen
        self._weight = weight

    def __call__(self, run: Run, given: Tensor, i: int) -> Mapping[str, Any]:
        """Inputs of the UNet, for as many rows as `given` (B, C, h, w) has; none where nothing counts."""
        images = {}
        for name, layer in self._layers.items():
            parts = [
                (weight, *(_last_rows(each, len(given)) for each in seen[name]))
                for number, seen in enumerate(self._seen) if (weight := self._weight(number, name))
            ]  # fmt: skip
            if parts:
                images[layer] = parts
        return {"images": images} if images else {}


@torch.no_grad()
def see(encoder: Any, pixels: Tensor, *, tokens: bool) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, s, s) -> what an image encoder makes of them, and of nothing: its embeddings (n, P), or with
    `tokens` its last layer's input (n, T, C)."""
    count = len(pixels)
    if not tokens:
        positive = encoder(pixels).image_embeds
        return positive, torch.zeros_like(positive)
    both = torch.cat([pixels, torch.zeros_like(pixels[:1])])
    seen = encoder(both, output_hidden_states=True).hidden_states[-2]
    return seen[:count], seen[count:].expand(count, *seen.shape[1:])


def rows_of(positive: Tensor, negative: Tensor | None, count: int) -> Tensor:
    """(1, n, …) -> (count, n, …), or behind as many negative ones."""
    positive = torch.cat([positive] * count)
    return positive if negative is None else torch.cat([*[negative] * count, positive])


def _last_rows(x: Tensor, rows: int) -> Tensor:
    """(R, S, C) -> its last rows: the conditional ones, in steps without guidance."""
    return x if len(x) == rows else x[-rows:]
