"""Train what is added to the packaged model: the loop and the arguments of `tools.train_controlnet` and `train_lora`.

By velocity, as the model itself (Salimans & Ho 2022), on the scenes that it was trained on (`tools.demo_world`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from leandiffusion import StableDiffusionPipeline
from tools.demo_world.render import render
from tools.demo_world.scenes import Scene, caption
from tools.train_demo.unet import draw_timesteps, write_out_attention

LOGGED = 20
"""Steps between two lines of the log."""


class Adapter(Protocol):
    """What is trained, and on what."""

    noisy: float
    """Share of timesteps from the noisiest two fifths."""

    unsaid: float
    """Share of drawings without a caption."""

    written: int
    """Steps after which what is trained is written, each time."""

    def scene(self, rng: np.random.Generator) -> Scene:
        """A scene at random, which the caption describes."""
        ...

    def shown(self, scene: Scene) -> Scene:
        """What the picture shows where the caption describes `scene`."""
        ...

    def begin(self, unet: Any, start: Path | None) -> Iterable[nn.Parameter | Tensor]:
        """What is trained, for a `unet` whose own weights stay: from what `write` wrote to `start`, or fresh."""
        ...

    def predict(self, unet: Any, x: Tensor, t: Tensor, text: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """Noisy latents (B, 4, h, w), timesteps (B,), encoded captions (B, T, d) -> velocity (B, 4, h, w)."""
        ...

    def write(self, to: Path) -> None:
        """Write what is trained, in float16."""
        ...


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """The scenes as (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2) / 255.0


@torch.no_grad()
def encode(vae: Any, scenes: Sequence[Scene]) -> Tensor:
    """The scenes as latents (N, 4, h, w) at the scale that the UNet knows."""
    parts = [vae.encode(pictures(scenes[i : i + 16]) * 2 - 1).latent_dist.mean for i in range(0, len(scenes), 16)]
    return torch.cat(parts) * vae.config.scaling_factor


def train(
    adapter: Adapter, to: Path, *, steps: int, batch: int, pool: int, rate: float, seed: int, start: Path | None = None
) -> None:
    """Train, going on from `start` if it is there, on `pool` scenes; writes to `to`. The log goes to the terminal."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    unet, scheduler = pipe.unet.requires_grad_(False), pipe.scheduler
    trained = list(adapter.begin(unet, start))
    scenes = [adapter.scene(rng) for _ in range(pool)]
    latents = encode(pipe.vae, [adapter.shown(scene) for scene in scenes])
    print(f"{pool} scenes encoded", flush=True)
    write_out_attention(unet)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    began, total = time.monotonic(), 0.0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps) ** 0.5
        chosen = rng.choice(pool, batch)
        texts = ["" if rng.random() < adapter.unsaid else caption(scenes[i], rng) for i in chosen]
        ids = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            text = pipe.text_encoder(ids).last_hidden_state
        x0, t = latents[chosen], draw_timesteps(batch, len(scheduler), adapter.noisy)
        noise = torch.randn_like(x0)
        with sdpa_kernel(SDPBackend.MATH):
            v = adapter.predict(unet, scheduler.add_noise(x0, noise, t), t, text, [scenes[i] for i in chosen])
        loss = (v - scheduler.get_velocity(x0, noise, t)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += float(loss.detach())
        if (step + 1) % LOGGED == 0:
            minutes = (time.monotonic() - began) / 60
            print(f"step {step + 1}: loss {total / LOGGED:.4f}, {minutes:.1f} min", flush=True)
            total = 0.0
        if (step + 1) % adapter.written == 0:
            adapter.write(to)
    adapter.write(to)


def main(adapter: Adapter, about: str, to: str, *, steps: int, pool: int, rate: float) -> None:
    """Read the command line, with these defaults, and train; `about` is said by --help, of `to` what is written."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("to", type=Path, help=f"{to} to write")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--pool", type=int, default=pool, help="scenes to train on")
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--start", type=Path, help=f"{to} that an earlier training wrote, to go on from")
    train(adapter, **vars(parser.parse_args()))
