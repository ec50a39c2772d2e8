"""Inpainting: a picture that is drawn anew where a mask says so, and kept elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...schedulers import randn
from ...schedulers.noise import Generators
from ..finite import check_finite
from ..schedule import Part
from .base import Encode, Task
from .picture import fill_batch, is_latent, on_device, sample_once

if TYPE_CHECKING:
    from ..encoding import Encoded
    from ..run import Run

MASK, MASKED = "mask", "masked_image_latents"


@dataclass(eq=False, kw_only=True)
class Inpainting(Task):
    """`picture` (n, 3, H, W) in [-1, 1], or latents (n, c, h, w); `mask` (m, 1, H, W), 1 where to draw and 0 elsewhere.

    n and m are divisors of the batch. At a strength of 1 noise takes the picture's place where the run begins.
    `latents` (B, c, h, w) is the caller's own noise of variance 1. `masked_latents` (n, c, h, w) are those of the
    picture without what the mask covers, if they are at hand.

    Callbacks see `mask` (B, 1, h, w) and `masked_image_latents` (B, c, h, w), both doubled under guidance. Noise is
    drawn in the order in which diffusers draws it.
    """

    has_pictures = True

    picture: Tensor
    mask: Tensor
    part: Part
    generator: Generators = None
    latents: Tensor | None = None
    masked_latents: Tensor | None = None
    _first: Tensor | None = field(init=False, default=None)

    def encodes(self, channels: int) -> int:
        """All of the pictures, unless they are latents."""
        return 0 if self.picture.shape[1] == channels else len(self.picture)

    def timesteps(self, scheduler: Any, laid_out: Tensor) -> Tensor:
        """The last `strength` of them, or those after a first model's."""
        return self.part.of(scheduler, laid_out)

    def first_latents(self, run: Run) -> Tensor:
        """Noise, or the picture's latents with noise. NonFiniteError for NaN or infinity in them."""
        assert self._first is not None, "prepare comes first"
        check_finite("the starting latents", self._first, "the picture or the latents that were given hold it too.")
        return self._first

    def _draw_noise(self, run: Run) -> Tensor:
        """The caller's noise, or new one, (B, c, h, w)."""
        if self.latents is not None:
            return on_device(self.latents, run)
        return randn(run.shape, generator=self.generator, device=run.model.device, dtype=run.model.dtype)

    def _begin(self, run: Run, clean: Tensor | None, noise: Tensor) -> Tensor:
        """Where the run begins, of the picture's latents, if they are there, and noise, both (B, c, h, w)."""
        if self.part.start is not None and clean is not None:
            return clean
        if clean is None or self.latents is not None or self.part.strength == 1:
            return noise * run.scheduler.init_noise_sigma
        return run.scheduler.add_noise(clean, noise, run.timesteps[:1])

    def _sample(self, encoded: Encoded, run: Run) -> Tensor:
        return sample_once(encoded, self.generator, run.shape[0]).to(run.model.dtype)

    def _masked(self, run: Run, encode: Encode) -> Tensor:
        """Latents (B, c, h, w) of the picture without what the mask covers."""
        if self.masked_latents is not None:
            return fill_batch(on_device(self.masked_latents, run), run.shape[0])
        return self._sample(encode(on_device(self.picture * (self.mask < 0.5), run)), run)

    def _show(self, run: Run, masked: Tensor | None) -> None:
        """Have the run, and callbacks, know the mask and the masked picture's latents."""
        mask = fill_batch(on_device(F.interpolate(self.mask, size=run.shape[2:]), run), run.shape[0])
        for name, rows in {MASK: mask, MASKED: masked}.items():
            run.tensors[name] = torch.cat([rows, rows]) if rows is not None and run.guidance.doubles else rows


@dataclass(eq=False, kw_only=True)
class SeeingTheMask(Inpainting):
    """For a UNet that was trained for inpainting: it sees the mask and the masked picture beside the latents."""

    extra_channels: int = 5

    def encodes(self, channels: int) -> int:
        """Of the masked picture, one for each mask."""
        return max(super().encodes(channels), len(self.mask) if self.masked_latents is None else 0)

    def prepare(self, run: Run, encode: Encode) -> None:
        """Encode the picture, unless noise takes its place, and the masked picture."""
        clean = None
        if self.part.start is not None or (self.latents is None and self.part.strength < 1):
            picture = on_device(self.picture, run)
            known = is_latent(picture, run)
            clean = fill_batch(picture, run.shape[0]) if known else self._sample(encode(picture), run)
        self._first = self._begin(run, clean, self._draw_noise(run))
        self._show(run, self._masked(run, encode))

    def unet_input(self, run: Run, x: Tensor, i: int) -> Tensor:
        """The scaled latents, the mask, and the masked picture's latents: (B, 2c + 1, h, w)."""
        rows = [run.tensors[name] for name in (MASK, MASKED)]
        return torch.cat([super().unet_input(run, x, i), *(each[: len(x)] for each in rows if each is not None)], dim=1)


@dataclass(eq=False, kw_only=True)
class Blending(Inpainting):
    """For any UNet: after each step what the mask leaves out is the picture again, with noise as of the next step."""

    _clean: Tensor | None = field(init=False, default=None)
    _noise: Tensor | None = field(init=False, default=None)

    def prepare(self, run: Run, encode: Encode) -> None:
        """Encode the picture; the masked one only for a callback that wants to see it."""
        picture, encoded = on_device(self.picture, run), None
        if is_latent(picture, run):
            self._clean = fill_batch(picture, run.shape[0])
        else:
            encoded = encode(picture)
            self._clean = self._sample(encoded, run)
        self._noise = self._draw_noise(run)
        self._first = self._begin(run, self._clean, self._noise)
        wanted = run.callback is not None and MASKED in run.callback.wanted
        if wanted and (encoded is not None or self.masked_latents is not None):
            self._show(run, self._masked(run, encode))
            return
        if self.masked_latents is None and encoded is not None:  # what the masked picture would draw is drawn all the
            self._sample(encoded.repeated(-(-len(self.mask) // len(picture))), run)  # same: noise of later steps agrees
        self._show(run, None)

    def after_step(self, run: Run, x: Tensor, i: int) -> Tensor:
        """The latents where the mask is 1, and the picture's elsewhere."""
        mask, clean = run.tensors[MASK], self._clean
        assert mask is not None
        assert clean is not None, "prepare comes first"
        if i + 1 < len(run.times):
            clean = run.scheduler.add_noise(clean, self._noise, run.timesteps[i + 1 : i + 2])
        mask = mask[: len(x)]
        return (1 - mask) * clean + mask * x
