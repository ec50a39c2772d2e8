"""Train the packaged model's LoRA 'night': `python -m tools.train_lora FILE`, some minutes on one core.

The scenes are those that the model was trained on, at night: whatever background the caption says, the picture's is
black. Rank 2 in every layer of the UNet with a weight. Neither the UNet's weights nor the text encoder change. A style
of other colours than the model knows, such as pale ones, cannot be had: its autoencoder has seen eight, and gives back
one of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leandiffusion.modules.factors import LowRank
from leandiffusion.modules.lora import put_on
from tools.demo_world.scenes import Scene, sample_scene
from tools.train_adapter import main

RANK = 2


class Night:
    """The LoRA that draws every scene before a black background."""

    noisy = 0.5  # where colours are decided
    unsaid = 0.1
    written = 20

    def __init__(self) -> None:
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        """down (r, ins, k, k) and up (out, r, 1, 1) for each layer of the UNet."""

    def scene(self, rng: np.random.Generator) -> Scene:
        """A scene in which nothing is black but perhaps the background, so that all of it can be seen at night."""
        while True:
            scene = sample_scene(rng)
            if all(thing.colour != "black" for thing in scene.things):
                return scene

    def shown(self, scene: Scene) -> Scene:
        """The scene before a black background."""
        return replace(scene, background="black")

    def begin(self, unet: Any, start: Path | None) -> Iterable[Tensor]:
        """Factors for each layer of the UNet, put on it: from the file `start`, or fresh, with up zero."""
        begun = {} if start is None else load_file(start)
        for name, layer in list(unet.named_modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                out, ins, *kernel = layer.weight.shape
                down = torch.randn(RANK, ins, *kernel) * (ins * int(np.prod(kernel))) ** -0.5
                up = torch.zeros(out, RANK, *[1] * len(kernel))
                if begun:
                    down, up = (begun[f"unet.{name}.lora_{letter}.weight"].float() for letter in "AB")
                self.factors[name] = down.requires_grad_(), up.requires_grad_()
                put_on(layer, [(LowRank(), {"down": down, "up": up}, 1.0)])
        return [each for pair in self.factors.values() for each in pair]

    def predict(self, unet: Any, x: Tensor, t: Tensor, text: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """What the UNet predicts with the factors on it."""
        return unet(x, t, text).sample

    def write(self, to: Path) -> None:
        """The factors as a LoRA file, named as diffusers names them."""
        state = {}
        for name, (down, up) in self.factors.items():
            state[f"unet.{name}.lora_A.weight"] = down.detach().half().contiguous()
            state[f"unet.{name}.lora_B.weight"] = up.detach().half().contiguous()
        save_file(state, to, {"format": "pt"})


if __name__ == "__main__":
    main(Night(), (__doc__ or "").splitlines()[0], "a .safetensors file", steps=160, pool=400, rate=4e-3)
