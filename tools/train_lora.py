"""Train the packaged model's LoRA 'night': `python -m tools.train_lora FILE`, some minutes on one core.

The scenes are those that the model was trained on (`tools.demo_world`), at night: whatever background the caption says,
the picture's is black. Rank 2 in every layer of the UNet with a weight, by velocity as the model itself (Salimans & Ho
2022). Neither the UNet's weights nor the text encoder change. A style of other colours than the model knows, such as
pale ones, cannot be had: its autoencoder has seen eight, and gives back one of these.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from leandiffusion import StableDiffusionPipeline
from leandiffusion.attention import backends
from leandiffusion.modules.factors import LowRank
from leandiffusion.modules.lora import put_on
from leandiffusion.modules.transformer import Attention
from tools.demo_world.render import render
from tools.demo_world.scenes import Scene, caption, sample_scene
from tools.train_demo.unet import draw_timesteps

RANK = 2
NOISY = 0.5
"""Share of timesteps from the noisiest two fifths, where colours are decided."""


def at_night(scene: Scene) -> Scene:
    """The scene before a black background."""
    return replace(scene, background="black")


def daylight(rng: np.random.Generator) -> Scene:
    """A scene in which nothing is black but perhaps the background, so that all of it can be seen at night."""
    while True:
        scene = sample_scene(rng)
        if all(thing.colour != "black" for thing in scene.things):
            return scene


def make_factors(unet: nn.Module, start: Path | None) -> dict[str, tuple[Tensor, Tensor]]:
    """down (r, ins, k, k) and up (out, r, 1, 1) for each layer of the UNet, put on it: from the file `start`, or fresh,
    with up zero."""
    begun = {} if start is None else load_file(start)
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            out, ins, *kernel = layer.weight.shape
            down = torch.randn(RANK, ins, *kernel) * (ins * int(np.prod(kernel))) ** -0.5
            up = torch.zeros(out, RANK, *[1] * len(kernel))
            if begun:
                down, up = (begun[f"unet.{name}.lora_{letter}.weight"].float() for letter in "AB")
            made[name] = down.requires_grad_(), up.requires_grad_()
            put_on(layer, [(LowRank(), {"down": made[name][0], "up": made[name][1]}, 1.0)])
    return made


@torch.no_grad()
def encode(pipe: Any, scenes: list[Scene]) -> Tensor:
    """The scenes at night as latents (N, 4, h, w) at the scale that the UNet knows."""
    found = []
    for i in range(0, len(scenes), 16):
        pixels = np.stack([render(at_night(scene)) / 255.0 for scene in scenes[i : i + 16]])
        x = torch.from_numpy(pixels).float().permute(0, 3, 1, 2) * 2 - 1
        found.append(pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor)
    return torch.cat(found)


def train(file: Path, *, steps: int, batch: int, pool: int, rate: float, seed: int, start: Path | None = None) -> None:
    """Train, going on from the file `start` if there is one, and write the factors in float16 as diffusers names them.

    The log goes to the terminal.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    unet, scheduler = pipe.unet, pipe.scheduler
    scenes = [daylight(rng) for _ in range(pool)]
    latents = encode(pipe, scenes)
    print(f"{pool} scenes encoded", flush=True)
    factors = make_factors(unet.requires_grad_(False), start)
    for module in unet.modules():
        if isinstance(module, Attention):
            module.backend = backends.get("plain")
    trained = [each for pair in factors.values() for each in pair]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    began, total = time.monotonic(), 0.0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps) ** 0.5
        chosen = rng.choice(pool, batch)
        texts = ["" if rng.random() < 0.1 else caption(scenes[i], rng) for i in chosen]
        ids = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            text = pipe.text_encoder(ids).last_hidden_state
        x0, t = latents[chosen], draw_timesteps(batch, len(scheduler), NOISY)
        noise = torch.randn_like(x0)
        with sdpa_kernel(SDPBackend.MATH):
            v = unet(scheduler.add_noise(x0, noise, t), t, text).sample
        loss = (v - scheduler.get_velocity(x0, noise, t)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += float(loss.detach())
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}: loss {total / 20:.4f}, {(time.monotonic() - began) / 60:.1f} min", flush=True)
            total = 0.0
            write(file, factors)
    write(file, factors)


def write(file: Path, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
    """The factors as a LoRA file."""
    state = {}
    for name, (down, up) in factors.items():
        state[f"unet.{name}.lora_A.weight"] = down.detach().half().contiguous()
        state[f"unet.{name}.lora_B.weight"] = up.detach().half().contiguous()
    save_file(state, file, {"format": "pt"})


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--pool", type=int, default=400)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--start", type=Path, help="a file that an earlier training wrote")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
