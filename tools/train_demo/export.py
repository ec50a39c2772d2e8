"""Put the trained networks together as a pipeline folder."""

from __future__ import annotations

from pathlib import Path

import torch

from leandiffusion import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

from .pool import open_vae
from .run import average_of
from .settings import SCHEDULER_CONFIG
from .tokenizer import train_tokenizer
from .unet import Denoiser, open_pool


def export(unet_run: Path, vae_source: Path, folder: Path, seed: int) -> None:
    """Write the averaged weights of both runs to `folder` in float16."""
    tokenizer = train_tokenizer(seed)
    model = Denoiser(tokenizer)
    model.load_state_dict(dict(average_of(unet_run)))
    trained = open_vae(vae_source)
    scale = open_pool(unet_run, trained, seed).scale
    vae = AutoencoderKL.from_config({**trained.config, "scaling_factor": scale})
    vae.load_state_dict(trained.state_dict())
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(SCHEDULER_CONFIG),
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder)
