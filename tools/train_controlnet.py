"""Train the packaged model's ControlNet 'silhouette': `python -m tools.train_controlnet FOLDER`, some minutes.

It sees white shapes on black, and has the model draw what the prompt says in these places and of these shapes. It
begins as a copy of the UNet's down path (Zhang et al. 2023, section 3). Some captions are left out, so that the shapes
are read from the picture too. The packaged one took 900 steps, and 520 more from there with `--start`, `--rate 6e-4
--seed 5`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leandiffusion import ControlNetModel
from tools.demo_world.scenes import Placed, Scene, sample_scene
from tools.train_adapter import main, pictures
from tools.train_demo.unet import write_out_attention

CHANNELS = (8, 16, 32, 64)
"""Of what the picture is turned into, step by step."""


def silhouettes(scene: Scene) -> Scene:
    """The scene's shapes in white, on black."""
    white: tuple[Placed, ...] = tuple(
        replace(placed, thing=replace(placed.thing, colour="white")) for placed in scene.placed
    )
    return replace(scene, placed=white, background="black")


class Silhouette:
    """The ControlNet that draws in the places, and of the shapes, that a picture shows in white."""

    noisy = 0.6  # where places and shapes are decided
    unsaid = 0.4
    written = 100  # which draws random numbers: another figure trains another ControlNet
    net: ControlNetModel

    def scene(self, rng: np.random.Generator) -> Scene:
        """Any scene of those that the model was trained on."""
        return sample_scene(rng)

    def shown(self, scene: Scene) -> Scene:
        """The scene as it is."""
        return scene

    def begin(self, unet: Any, start: Path | None) -> Iterable[nn.Parameter]:
        """The ControlNet's weights: from the folder `start`, or the UNet's."""
        self.net = (
            ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CHANNELS)
            if start is None
            else ControlNetModel.from_pretrained(start)
        )
        write_out_attention(self.net)
        return self.net.requires_grad_(True).parameters()

    def predict(self, unet: Any, x: Tensor, t: Tensor, text: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """What the UNet predicts with what the ControlNet adds, which sees the scenes' silhouettes."""
        down, middle = self.net(x, t, text, pictures([silhouettes(scene) for scene in scenes]), return_dict=False)
        return unet(
            x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample  # fmt: skip

    @torch.no_grad()
    def write(self, to: Path) -> None:
        """The ControlNet's folder."""
        half = ControlNetModel.from_config(self.net.config)
        half.load_state_dict(self.net.state_dict())
        half.to(torch.float16).save_pretrained(to)


if __name__ == "__main__":
    main(Silhouette(), (__doc__ or "").splitlines()[0], "a ControlNet's folder", steps=900, pool=800, rate=1e-3)
