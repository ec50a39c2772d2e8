"""Train the UNet and the text model together on encoded scenes, by v-prediction (Salimans & Ho 2022)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from leandiffusion import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from leandiffusion.attention import backends
from leandiffusion.modules.transformer import Attention
from tools.demo_world.scenes import caption

from .pool import Pool, open_vae
from .run import Run
from .settings import SCHEDULER_CONFIG, TEXT_CONFIG, UNET_CONFIG, UnetTraining
from .tokenizer import train_tokenizer


class Denoiser(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **ids}
        self.text_encoder = CLIPTextModel.from_config({**TEXT_CONFIG, **vocabulary})
        self.unet = UNet2DConditionModel.from_config(UNET_CONFIG)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Noisy latents (B, 4, 16, 16), timesteps (B,), token ids (B, T) -> predicted velocity (B, 4, 16, 16)."""
        return self.unet(x, t, self.text_encoder(ids).last_hidden_state).sample


def open_pool(folder: Path, vae: AutoencoderKL, seed: int, settings: UnetTraining | None = None) -> Pool:
    """The encoded scenes of a run, encoding them if this is its first start."""
    count = (settings or UnetTraining()).pool
    return Pool(folder / f"latents-{count}.pt", vae, count, seed)


def draw_timesteps(count: int, steps: int, noisy: float) -> Tensor:
    """Timesteps (count,) in 0 … steps - 1: a share `noisy` from the last two fifths, else uniform.

    What goes where is decided in the noisiest steps, and learned last.
    """
    t = torch.rand(count)
    return (torch.where(torch.rand(count) < noisy, 0.6 + 0.4 * t, t) * steps).long().clamp_(max=steps - 1)


def write_out_attention(network: nn.Module) -> None:
    """Have the network compute attention by plain operations: on so few tokens the backward pass of the fused kernels
    takes three times as long. The text model's is torch's own function, for which SDPBackend.MATH does the same."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.backend = backends.get("plain")


def train_unet(
    folder: Path, vae_source: Path, seed: int, start: Path | None = None, settings: UnetTraining | None = None
) -> None:
    """Train in `folder`, going on from its checkpoint if there is one, else from the pipeline `start`, else afresh."""
    settings = settings or UnetTraining()
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(seed)
    pool = open_pool(folder, open_vae(vae_source), seed, settings)
    model = Denoiser(tokenizer)
    if start is not None:
        begun = StableDiffusionPipeline.from_pretrained(start)
        model.unet.load_state_dict(begun.unet.state_dict())
        model.text_encoder.load_state_dict(begun.text_encoder.state_dict())
    write_out_attention(model)
    model.to(memory_format=torch.channels_last)
    run = Run(folder, model, peak=settings.rate, steps=settings.steps, decay=settings.decay)
    scheduler = DDIMScheduler.from_config(SCHEDULER_CONFIG)
    while run.step < run.steps:
        rng = run.rng(seed)
        pairs = int(rng.binomial(settings.batch, settings.pairs))
        chosen = np.concatenate([rng.choice(pool.pairs, pairs), rng.choice(pool.singles, settings.batch - pairs)])
        x0 = pool.latents[chosen].float() * pool.scale
        noise = torch.randn_like(x0)
        t = draw_timesteps(settings.batch, len(scheduler), settings.noisy)
        texts = ["" if rng.random() < settings.caption_dropout else caption(pool.scenes[i], rng) for i in chosen]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        x = scheduler.add_noise(x0, noise, t).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            v = model(x, t, ids)
        run.update((v.float() - scheduler.get_velocity(x0, noise, t)).square().mean())
