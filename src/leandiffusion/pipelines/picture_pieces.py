"""Pieces of a call on pictures, under diffusers' names, for those who write the loop themselves."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError
from ..run import inputs
from ..run.schedule import Part
from ..run.tasks.picture import fill_batch, sample_for_all, sample_once
from ..schedulers import randn
from ..schedulers.noise import Generators
from .base import undisturbed
from .from_pictures import check_rows


class Timesteps:
    """Mixin of all of them."""

    def get_timesteps(
        self: Any,
        num_inference_steps: int,
        strength: float,
        device: torch.device | str | None,
        denoising_start: float | None = None,
    ) -> tuple[Tensor, int]:
        """The scheduler's timesteps that are run, and how many steps they are. See `run.schedule.Part`."""
        part = Part(strength, num_inference_steps, denoising_start)
        kept = part.of(self.scheduler, self.scheduler.timesteps)
        if denoising_start is not None:
            return kept, len(kept)
        return kept, min(int(num_inference_steps * strength), num_inference_steps)


class Img2ImgPieces(Timesteps):
    """Mixin of the two for image to image."""

    @undisturbed
    @torch.no_grad()
    def prepare_latents(
        self: Any,
        image: Tensor,
        timestep: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: Generators = None,
        add_noise: bool = True,
    ) -> Tensor:
        """Latents (B, c, h, w) of pictures (n, 3, H, W) in [-1, 1], or of latents, with noise as of the timestep."""
        batch = batch_size * num_images_per_prompt
        inputs.check_generators(generator, batch)
        check_rows("image", image, batch)
        given = image.to(device, dtype)
        if self._is_latent(given):
            clean = fill_batch(given, batch)
        else:
            clean = sample_for_all(self._encode_pictures(self.vae, given), generator, batch).to(dtype)
        if not add_noise:
            return clean
        noise = randn(clean.shape, generator=generator, device=device, dtype=dtype)
        return self.scheduler.add_noise(clean, noise, timestep)


class InpaintPieces(Timesteps):
    """Mixin of StableDiffusionInpaintPipeline, and of its SDXL one but for the order of `prepare_latents`."""

    def prepare_latents(
        self: Any,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: Generators,
        latents: Tensor | None = None,
        image: Tensor | None = None,
        timestep: Tensor | None = None,
        is_strength_max: bool = True,
        return_noise: bool = False,
        return_image_latents: bool = False,
    ) -> tuple[Tensor, ...]:
        """Latents to begin with, and if asked the noise and the picture's own latents, all (B, c, h, w)."""
        factor = self.vae_scale_factor
        shape = (batch_size, num_channels_latents, int(height) // factor, int(width) // factor)
        return self._prepare(
            shape, dtype, device, generator, latents, image, timestep, is_strength_max, True, return_noise,
            return_image_latents,
        )  # fmt: skip

    @undisturbed
    @torch.no_grad()
    def _prepare(
        self: Any,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device | str,
        generator: Generators,
        latents: Tensor | None,
        image: Tensor | None,
        timestep: Tensor | None,
        is_strength_max: bool,
        add_noise: bool,
        return_noise: bool,
        return_image_latents: bool,
    ) -> tuple[Tensor, ...]:
        inputs.check_generators(generator, shape[0])
        needs_clean = return_image_latents or not add_noise or (latents is None and not is_strength_max)
        if needs_clean and (image is None or (timestep is None and not is_strength_max)):
            raise ConfigError("image and timestep are missing: below a strength of 1 the picture is where it begins.")
        clean = self._sampled(image, shape[0], dtype, device, generator) if needs_clean else None
        if latents is None or not add_noise:
            noise = randn(shape, generator=generator, device=device, dtype=dtype)
        else:
            noise = latents.to(device)
        if not add_noise:
            first = clean
        elif latents is None and not is_strength_max:
            first = self.scheduler.add_noise(clean, noise, timestep)
        else:
            first = noise * self.scheduler.init_noise_sigma
        asked = (True, return_noise, return_image_latents)
        return tuple(each for each, wanted in zip((first, noise, clean), asked, strict=True) if wanted)  # type: ignore[misc]

    @undisturbed
    @torch.no_grad()
    def prepare_mask_latents(
        self: Any,
        mask: Tensor,
        masked_image: Tensor | None,
        batch_size: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: Generators,
        do_classifier_free_guidance: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The mask (B, 1, h, w), and the latents (B, c, h, w) of the picture without what it covers, if that is given;
        both doubled under guidance."""
        factor = self.vae_scale_factor
        check_rows("mask", mask, batch_size)
        small = F.interpolate(mask, size=(height // factor, width // factor)).to(device, dtype)
        rows = [fill_batch(small, batch_size), None]
        if masked_image is not None:
            rows[1] = self._sampled(masked_image, batch_size, dtype, device, generator)
        copies = 2 if do_classifier_free_guidance else 1
        mask, masked = (None if each is None else torch.cat([each] * copies) for each in rows)  # type: ignore[misc]
        return mask, masked  # type: ignore[return-value]

    def _sampled(
        self: Any, image: Tensor, batch: int, dtype: torch.dtype, device: torch.device | str, generator: Generators
    ) -> Tensor:
        check_rows("image", image, batch)
        given = image.to(device, dtype)
        if self._is_latent(given):
            return fill_batch(given, batch)
        return sample_once(self._encode_pictures(self.vae, given), generator, batch).to(dtype)


class InpaintPiecesXL(InpaintPieces):
    """Mixin of StableDiffusionXLInpaintPipeline."""

    def prepare_latents(  # type: ignore[override]
        self: Any,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: Generators,
        latents: Tensor | None = None,
        image: Tensor | None = None,
        timestep: Tensor | None = None,
        is_strength_max: bool = True,
        add_noise: bool = True,
        return_noise: bool = False,
        return_image_latents: bool = False,
    ) -> tuple[Tensor, ...]:
        """As StableDiffusionInpaintPipeline's; without `add_noise` the picture's latents are where it begins."""
        factor = self.vae_scale_factor
        shape = (batch_size, num_channels_latents, int(height) // factor, int(width) // factor)
        return self._prepare(
            shape, dtype, device, generator, latents, image, timestep, is_strength_max, add_noise, return_noise,
            return_image_latents,
        )  # fmt: skip
