"""ControlNets with random weights, for any UNet; pipelines of diffusers and ours with the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import leandiffusion
from leandiffusion import ControlNetModel

LATENTS, VISIBLE = 1e-4, 1e-2
"""Of the largest value of latents: how far they may differ from diffusers', and what differs to the eye."""

NAMES = {"sd1": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}
Pair = tuple[Any, Any]


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


def control_of(unet: Any, folder: Path, seed: int) -> Any:
    """diffusers' ControlNet for such a UNet of its own, with random weights, saved in the folder."""
    import diffusers

    torch.manual_seed(seed)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16, 24)).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():  # what is new begins with zeros
            parameter.add_((0.3 if name.startswith("controlnet_") else 0.02) * torch.randn_like(parameter))
    net.save_pretrained(folder)
    return net


def pair_of(family: str, plain: Any, folder: Path, nets: Sequence[Any], folders: Sequence[Path]) -> Pair:
    """diffusers' pipeline and ours, with the parts of `plain`, saved in `folder`, and with `nets`, saved in `folders`:
    one by itself, or a list."""
    import diffusers

    own = [ControlNetModel.from_pretrained(each) for each in folders]
    theirs = getattr(diffusers, NAMES[family])(**plain.components, controlnet=nets[0] if len(nets) == 1 else list(nets))
    cls = getattr(leandiffusion, NAMES[family])
    ours = cls.from_pretrained(folder, controlnet=own[0] if len(own) == 1 else own)
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    return theirs, ours


def picture(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*(shape or (1, 3, 64, 64)), generator=torch.Generator().manual_seed(seed))


def draw(pipe: Any, **asked: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"prompt": "a red cat", "num_inference_steps": 5, "guidance_scale": 4.0} | asked
    return pipe(output_type="latent", generator=torch.Generator().manual_seed(7), **arguments).images


def check(pair: Pair, **asked: Any) -> torch.Tensor:
    expected, got = (draw(pipe, **asked) for pipe in pair)
    assert (got - expected).abs().max() < LATENTS * expected.abs().max()
    return got


def pairs_of(
    name: str, tiny: Callable[[str], tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Pair]:
    """By the number of ControlNets, diffusers' pipeline and ours with them, the same weights in both."""
    plain, folder = tiny(name)
    folders = [tmp_path_factory.mktemp("controlnet") for _ in range(2)]
    nets = [control_of(plain.unet, each, seed) for seed, each in enumerate(folders)]
    return lambda count: pair_of(name, plain, folder, nets[:count], folders[:count])
