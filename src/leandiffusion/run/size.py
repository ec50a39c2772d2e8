"""The size of a call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallSize:
    """Pixels and pictures of a call; with `guidance` each step makes a conditional and an unconditional prediction.

    `chunks`: how long the texts are, in multiples of what a text encoder reads at once. `pictures`: how many the VAE
    encodes at a time before the first step, `controls`: how many ControlNets each step calls. `perturbed`: each step
    makes a further prediction, for perturbed-attention guidance. `image_prompts`: how many pictures an IP-Adapter sees.
    """

    height: int
    width: int
    batch: int = 1
    guidance: bool = True
    chunks: int = 1
    pictures: int = 0
    controls: int = 0
    perturbed: bool = False
    image_prompts: int = 0

    @property
    def predictions(self) -> int:
        """That a step makes for each picture."""
        return 1 + self.guidance + self.perturbed
