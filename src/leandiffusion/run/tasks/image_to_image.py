"""Image to image: a picture with some noise to begin with (Meng et al. 2021, SDEdit)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...schedulers import randn
from ...schedulers.noise import Generators
from ..finite import check_finite
from ..schedule import Part
from .base import Encode, Task
from .picture import fill_batch, is_latent, on_device, sample_for_all

if TYPE_CHECKING:
    from ..run import Run


@dataclass(eq=False, kw_only=True)
class ImageToImage(Task):
    """`picture` (n, 3, H, W) in [-1, 1], or latents (n, c, h, w), for a batch of which n is a divisor.

    It gets the noise of the timestep that `part` begins with, or none where `part` goes on from a first model's
    latents. `latents` (B, c, h, w) to begin with take its place.
    """

    picture: Tensor
    part: Part
    generator: Generators = None
    latents: Tensor | None = None
    _first: Tensor | None = field(init=False, default=None)

    @property
    def has_pictures(self) -> bool:  # type: ignore[override]
        """There is nothing to encode where latents were given."""
        return self.latents is None

    def encodes(self, channels: int) -> int:
        """All of the pictures, unless latents were given."""
        return 0 if self.latents is not None or self.picture.shape[1] == channels else len(self.picture)

    def timesteps(self, scheduler: Any, laid_out: Tensor) -> Tensor:
        """The last `strength` of them, or those after the first model's."""
        return self.part.of(scheduler, laid_out)

    def prepare(self, run: Run, encode: Encode) -> None:
        """Encode the picture and add noise to its latents."""
        picture = on_device(self.picture, run)
        if is_latent(picture, run):
            clean = fill_batch(picture, run.shape[0])
        else:
            clean = sample_for_all(encode(picture), self.generator, run.shape[0]).to(picture.dtype)
        if self.part.start is None:
            noise = randn(run.shape, generator=self.generator, device=run.model.device, dtype=run.model.dtype)
            clean = run.scheduler.add_noise(clean, noise, run.timesteps[:1])
        self._first = clean

    def first_latents(self, run: Run) -> Tensor:
        """The picture's latents, with noise. NonFiniteError for NaN or infinity in them."""
        first = self._first if self.latents is None else on_device(self.latents, run)
        assert first is not None, "prepare comes first"
        check_finite("the starting latents", first, "the picture or the latents that were given hold it too.")
        return first
