"""Deep features of a UNet kept from one forward for the next ones (DeepCache: Ma et al. 2023, sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False)
class DeepFeature:
    """What reaches the outermost `depth` resnets of the up path: `value` (B, C, H, W).

    Given one without a value, a UNet computes everything and keeps it there. Given one with a value, it computes only
    the outermost `depth` skip connections and the resnets that take them, and the value stands for all that lies
    deeper; it has to be of the same batch and size.
    """

    depth: int
    value: Tensor | None = None
