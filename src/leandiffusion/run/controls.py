"""ControlNets in a run: what they add to each call of the UNet, whatever the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..modules.blocks import repeat_rows
from ..modules.controlnet import ControlNetModel

if TYPE_CHECKING:
    from .conditioning import Conditioning
    from .run import Run

Residuals = tuple[list[Tensor], Tensor]
"""What is added to the skip connections, the outermost first, and to what leaves the middle."""


@dataclass(frozen=True, eq=False)
class Guide:
    """One ControlNet and what it sees: a picture (B or 1, C, H, W) in [0, 1]. `scale` times what it says is added,
    between the shares `start` and `end` of the steps."""

    net: Any
    picture: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def counts_at(self, i: int, steps: int) -> bool:
        """Whether anything is added in step i of so many."""
        return bool(self.scale) and i / steps >= self.start and (i + 1) / steps <= self.end


@dataclass(eq=False)
class Guides:
    """A control (`run.run.Control`): several ControlNets, whose contributions are added up.

    With `guesses` they see only the conditional half of the batch, and nothing is added to the other. What does not
    depend on the step, the picture's embedding, is computed once.
    """

    guides: Sequence[Guide]
    guesses: bool = False
    _embedded: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __call__(self, run: Run, given: Tensor, i: int) -> Mapping[str, Any]:
        """Inputs of the UNet, beside `given` (B, C, h, w), its latents; none in steps where nothing counts."""
        steps, conditioning = len(run.times), run.conditioning
        counted = [place for place, guide in enumerate(self.guides) if guide.counts_at(i, steps)]
        if not counted:
            return {}
        doubled = run.guidance_at(i).doubles
        if len(given) < len(conditioning.embeds):  # guidance is left out in this step
            conditioning = conditioning.conditional
        seen, rows = given, len(given)
        if self.guesses and doubled:
            seen, conditioning = given.chunk(2)[1], conditioning.conditional
        down, middle = self._call(counted[0], run, seen, i, conditioning)
        for place in counted[1:]:
            others, other = self._call(place, run, seen, i, conditioning)
            down, middle = [a + b for a, b in zip(down, others, strict=True)], middle + other
        if len(seen) < rows:
            down, middle = [_behind_zeros(each) for each in down], _behind_zeros(middle)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def _call(self, place: int, run: Run, given: Tensor, i: int, conditioning: Conditioning) -> Residuals:
        guide, dtype = self.guides[place], given.dtype
        net = guide.net
        latents = given[:, : net.config.in_channels].to(net.dtype)  # without what an inpainting UNet sees besides
        ours = isinstance(net, ControlNetModel)
        if place not in self._embedded:
            picture = guide.picture.to(net.device, net.dtype)
            self._embedded[place] = net.embed_condition(picture) if ours else picture
        picture = repeat_rows(self._embedded[place], len(latents))
        down, middle = net(
            latents, run.times[i], conditioning.embeds, conditioning_scale=guide.scale, guess_mode=self.guesses,
            added_cond_kwargs=conditioning.added, return_dict=False,
            **{"embedded" if ours else "controlnet_cond": picture},
        )  # fmt: skip
        return [each.to(dtype) for each in down], middle.to(dtype)


def _behind_zeros(x: Tensor) -> Tensor:
    """(B, …) -> (2B, …): nothing for the unconditional half."""
    return torch.cat([torch.zeros_like(x), x])
