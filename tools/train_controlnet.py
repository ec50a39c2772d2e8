"""Train the packaged model's ControlNet 'silhouette': `python -m tools.train_controlnet FOLDER`, some minutes.

It sees white shapes on black, and has the model draw what the prompt says in these places and of these shapes. It
begins as a copy of the UNet's down path (Zhang et al. 2023, section 3), and is trained by velocity as the model itself
(Salimans & Ho 2022), on the scenes that the model was trained on (`tools.demo_world`). Some captions are left out, so
that the shapes are read from the picture too. The packaged one took 900 steps, and 520 more from there with `--start`,
`--rate 6e-4 --seed 5`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from leandiffusion import ControlNetModel, StableDiffusionPipeline
from leandiffusion.attention import backends
from leandiffusion.modules.transformer import Attention
from tools.demo_world.render import render
from tools.demo_world.scenes import Placed, Scene, caption, sample_scene
from tools.train_demo.unet import draw_timesteps

NOISY = 0.6
"""Share of timesteps from the noisiest two fifths, where places and shapes are decided."""

CHANNELS = (8, 16, 32, 64)
"""Of what the picture is turned into, step by step."""

UNSAID = 0.4
"""Share of drawings without a caption."""


def silhouettes(scene: Scene) -> Scene:
    """The scene's shapes in white, on black."""
    white: tuple[Placed, ...] = tuple(
        replace(placed, thing=replace(placed.thing, colour="white")) for placed in scene.placed
    )
    return replace(scene, placed=white, background="black")


def pictures(scenes: list[Scene]) -> Tensor:
    """The scenes as (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2) / 255.0


@torch.no_grad()
def encode(vae: Any, scenes: list[Scene]) -> Tensor:
    """The scenes as latents (N, 4, h, w) at the scale that the UNet knows."""
    parts = [vae.encode(pictures(scenes[i : i + 16]) * 2 - 1).latent_dist.mean for i in range(0, len(scenes), 16)]
    return torch.cat(parts) * vae.config.scaling_factor


def train(
    folder: Path, *, steps: int, batch: int, pool: int, rate: float, seed: int, start: Path | None = None
) -> None:
    """Train, going on from the folder `start` if there is one, and write the ControlNet in float16.

    The log goes to the terminal.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    unet, scheduler = pipe.unet.requires_grad_(False), pipe.scheduler
    net = (
        ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CHANNELS)
        if start is None
        else ControlNetModel.from_pretrained(start)
    )
    net.requires_grad_(True)
    scenes = [sample_scene(rng) for _ in range(pool)]
    latents = encode(pipe.vae, scenes)
    print(f"{pool} scenes encoded", flush=True)
    for module in (*unet.modules(), *net.modules()):
        if isinstance(module, Attention):
            module.backend = backends.get("plain")
    trained = list(net.parameters())
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    began, total = time.monotonic(), 0.0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps) ** 0.5
        chosen = rng.choice(pool, batch)
        texts = ["" if rng.random() < UNSAID else caption(scenes[i], rng) for i in chosen]
        ids = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            text = pipe.text_encoder(ids).last_hidden_state
        seen = pictures([silhouettes(scenes[i]) for i in chosen])
        x0, t = latents[chosen], draw_timesteps(batch, len(scheduler), NOISY)
        noise = torch.randn_like(x0)
        x = scheduler.add_noise(x0, noise, t)
        with sdpa_kernel(SDPBackend.MATH):
            down, middle = net(x, t, text, seen, return_dict=False)
            v = unet(
                x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample  # fmt: skip
        loss = (v - scheduler.get_velocity(x0, noise, t)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += float(loss.detach())
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}: loss {total / 20:.4f}, {(time.monotonic() - began) / 60:.1f} min", flush=True)
            total = 0.0
        if (step + 1) % 100 == 0:
            write(folder, net)
    write(folder, net)


@torch.no_grad()
def write(folder: Path, net: ControlNetModel) -> None:
    """The ControlNet's folder, its weights in float16."""
    half = ControlNetModel.from_config(net.config)
    half.load_state_dict(net.state_dict())
    half.to(torch.float16).save_pretrained(folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="the ControlNet's folder to write")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--pool", type=int, default=800)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--start", type=Path, help="a folder that an earlier training wrote")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
