"""Train the autoencoder on rendered scenes: mean absolute error plus a little KL divergence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leandiffusion import AutoencoderKL
from tools.demo_world.render import render
from tools.demo_world.scenes import Scene, sample_scene

from .run import Run
from .settings import VAE_CONFIG, VaeTraining

CROP = 64


def train_vae(folder: Path, seed: int, settings: VaeTraining | None = None) -> None:
    """Train in `folder`, going on from its checkpoint if there is one. About 25 minutes on two cores with AMX."""
    settings = settings or VaeTraining()
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_config(VAE_CONFIG).to(memory_format=torch.channels_last)
    run = Run(folder, vae, peak=settings.rate, steps=settings.crop_steps + settings.whole_steps)
    while run.step < run.steps:
        rng = run.rng(seed)
        crops = run.step < settings.crop_steps
        x = draw_batch(rng, settings.crop_batch, CROP) if crops else draw_batch(rng, settings.whole_batch, None)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(x).latent_dist
            z = latents.mean + latents.std * torch.randn_like(latents.mean)
            y = vae.decode(z).sample
        error = (y.float() - x).abs().mean()
        kl = latents.kl().float().mean() / latents.mean[0].numel()
        run.update(error + settings.kl_weight * kl, error=error, kl=kl)


def draw_batch(rng: np.random.Generator, count: int, crop: int | None) -> Tensor:
    """Pictures (count, 3, side, side) in [-1, 1]; crops are taken around a shape, where there is something to learn."""
    pictures = []
    for _ in range(count):
        scene = sample_scene(rng, split="all")  # the autoencoder sees no words, so nothing is held out from it
        picture = render(scene)
        pictures.append(picture if crop is None else _crop(picture, scene, rng, crop))
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def _crop(picture: np.ndarray, scene: Scene, rng: np.random.Generator, side: int) -> np.ndarray:
    placed = scene.placed[rng.integers(len(scene.placed))]
    centre = np.array([placed.y, placed.x]) + rng.uniform(-placed.r, placed.r, 2)
    top, left = np.clip(centre - side / 2, 0, picture.shape[0] - side).astype(int)
    return picture[top : top + side, left : left + side]
