"""Scenes drawn and encoded once, so that the UNet's training spends its time on the UNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from leandiffusion import AutoencoderKL
from leandiffusion.pipelines.from_folder import packaged
from tools.demo_world.render import render
from tools.demo_world.scenes import Scene, sample_scene

from .run import average_of
from .settings import VAE_CONFIG

_CHUNK = 32


def open_vae(source: Path) -> AutoencoderKL:
    """The autoencoder of a run folder (its averaged weights) or of a pipeline folder, whole, for inference."""
    if (source / "checkpoint.pt").exists():
        vae = AutoencoderKL.from_config(VAE_CONFIG)
        vae.load_state_dict(dict(average_of(source)))
    else:
        vae = AutoencoderKL.from_pretrained(packaged(source), subfolder="vae")
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


class Pool:
    """`count` training scenes and the means of their latents, (count, 4, 16, 16), in `path` for the next start.

    `scale` brings the latents to unit variance: the VAE's scaling_factor, measured here where it has none yet.
    """

    def __init__(self, path: Path, vae: AutoencoderKL, count: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 11])
        self.scenes: list[Scene] = [sample_scene(rng) for _ in range(count)]
        self.pairs = np.array([i for i, scene in enumerate(self.scenes) if len(scene.placed) == 2])
        self.singles = np.setdiff1d(np.arange(count), self.pairs)
        if path.exists():
            self.latents: Tensor = torch.load(path, weights_only=True)
        else:
            self.latents = self._encode(vae)
            torch.save(self.latents, path)
        if len(self.latents) != count:
            raise ValueError(f"{path} holds {len(self.latents)} latents, expected {count}: delete it to encode anew.")
        measured = round(1 / float(self.latents[:4096].float().std()), 5)
        self.scale = measured if vae.config.scaling_factor == 1 else vae.config.scaling_factor

    @torch.inference_mode()
    def _encode(self, vae: AutoencoderKL) -> Tensor:
        chunks = []
        for start in trange(0, len(self.scenes), _CHUNK, desc="encode scenes", mininterval=10):
            pictures = np.stack([render(scene) for scene in self.scenes[start : start + _CHUNK]])
            x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                chunks.append(vae.encode(x / 127.5 - 1).latent_dist.mean.to(torch.float16).contiguous())
        return torch.cat(chunks)
