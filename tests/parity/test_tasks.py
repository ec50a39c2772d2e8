"""A second task added as docs/how-to-add-a-task.md says, held against diffusers' own pipelines for it.

Image to image is what is added: a file of its own, and no change to the loop. Tolerances as in test_pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leandiffusion import StableDiffusionPipeline, StableDiffusionXLPipeline
from leandiffusion.pipelines.base import drawing
from leandiffusion.pipelines.request import Request, RequestXL
from leandiffusion.run.run import Run
from leandiffusion.run.tasks.base import Task
from leandiffusion.schedulers import build, randn

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LATENTS, VISIBLE = 1e-4, 1e-2
STEPS = 6


@dataclass(frozen=True)
class ImageToImage(Task):
    """A picture (1, 3, H, W) in [-1, 1] with noise as of the timestep that `strength` in (0, 1] of the schedule has."""

    picture: Tensor
    strength: float
    generator: torch.Generator

    def timesteps(self, scheduler: Any, laid_out: Tensor) -> Tensor:
        left_out = (STEPS - int(STEPS * self.strength)) * scheduler.order
        scheduler.set_begin_index(left_out)
        return laid_out[left_out:]

    def first_latents(self, run: Run) -> Tensor:
        vae = run.model.vae
        clean = vae.encode(self.picture).latent_dist.sample(self.generator) * vae.config.scaling_factor
        noise = randn(run.shape, generator=self.generator, device=run.model.device, dtype=run.model.dtype)
        return run.scheduler.add_noise(clean, noise, run.timesteps[:1])


ASKED: dict[str, Any] = {
    "negative_prompt": None, "prompt_embeds": None, "negative_prompt_embeds": None, "timesteps": None, "sigmas": None,
    "guidance_rescale": 0.0, "num_images_per_prompt": 1, "eta": 0.0, "ip_adapter_image": None,
    "ip_adapter_image_embeds": None, "output_type": "latent", "return_dict": True, "cross_attention_kwargs": None,
    "clip_skip": None, "callback_on_step_end": None, "callback_on_step_end_tensor_inputs": None,
}  # fmt: skip
ASKED_XL: dict[str, Any] = {
    "prompt_2": None, "negative_prompt_2": None, "pooled_prompt_embeds": None, "negative_pooled_prompt_embeds": None,
    "original_size": None, "crops_coords_top_left": (0, 0), "target_size": None, "negative_original_size": None,
    "negative_crops_coords_top_left": (0, 0), "negative_target_size": None,
}  # fmt: skip


class Img2Img(StableDiffusionPipeline):
    @drawing
    def __call__(self, picture: Tensor, strength: float, generator: torch.Generator, **asked: Any) -> Any:  # type: ignore[override]
        request = Request(**ASKED | asked, generator=generator)
        return self._draw(request, ImageToImage(picture, strength, generator))[0]


class Img2ImgXL(StableDiffusionXLPipeline):
    @drawing
    def __call__(self, picture: Tensor, strength: float, generator: torch.Generator, **asked: Any) -> Any:  # type: ignore[override]
        request = RequestXL(**ASKED | ASKED_XL | asked, generator=generator)
        return self._draw(request, ImageToImage(picture, strength, generator))[0]


CLASSES = {
    "sd1": (Img2Img, "StableDiffusionImg2ImgPipeline"), "sdxl": (Img2ImgXL, "StableDiffusionXLImg2ImgPipeline"),
}  # fmt: skip


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize(("family", "scheduler"), [("sd1", "ddim"), ("sd1", "dpm++"), ("sdxl", "euler")])
def test_image_to_image(tiny: Callable[[str], tuple[Any, Path]], family: str, scheduler: str, strength: float) -> None:
    plain, folder = tiny(family)
    cls, name = CLASSES[family]
    ours: Any = cls.from_pretrained(folder)
    ours.scheduler = build(scheduler, ours.scheduler.config)
    theirs = getattr(diffusers, name)(**plain.components)
    theirs.scheduler = getattr(diffusers, type(ours.scheduler).__name__).from_config(ours.scheduler.config)
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    asked = {"prompt": "a red cat", "num_inference_steps": STEPS, "guidance_scale": 5.0}

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(7)

    got = ours(picture, strength, seeded(), **asked)
    expected = theirs(image=picture, strength=strength, generator=seeded(), output_type="latent", **asked).images
    assert ours.num_timesteps == int(STEPS * strength)
    assert (got - expected).abs().max() < LATENTS * expected.abs().max()
    other = ours(-picture, strength, seeded(), **asked)
    if strength < 1:
        assert (got - other).abs().max() > VISIBLE * expected.abs().max(), "the picture matters"
