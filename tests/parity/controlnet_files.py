"""ControlNets with random weights, for any UNet of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from leandiffusion import ControlNetModel


def random_controlnet(unet: Any, gain: float = 1.0, seed: int = 0) -> ControlNetModel:
    """One that sees its picture and adds about `gain` times what it makes: none of its layers is at zero."""
    torch.manual_seed(seed)
    net = ControlNetModel(**ControlNetModel.settings_for(unet.config))
    net.controlnet_cond_embedding.conv_out.reset_parameters()
    for head in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        head.reset_parameters()
        torch.nn.init.normal_(head.weight, std=gain / head.in_channels**0.5)
    return net


def save_controlnet(folder: Path, unet: Any, gain: float = 1.0, seed: int = 0) -> Path:
    """The folder, with one."""
    random_controlnet(unet, gain, seed).save_pretrained(folder)
    return folder
