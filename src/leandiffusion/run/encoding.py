"""Pictures to latents: the VAE's encoder, and what is done where it overflows or does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import NonFiniteError
from ..schedulers import randn
from ..schedulers.noise import Generators
from .fallbacks import copied, in_strips_if_need_be

UNNEEDED = ("decoder", "post_quant_conv")  # parts of the VAE that decode


@dataclass(frozen=True)
class Encoded:
    """What a VAE makes of pictures: mean and spread (n, C, h, w) of their latents, which are to be multiplied by
    `scale`. A VAE without a spread gives latents at once, and `std` is None."""

    mean: Tensor
    std: Tensor | None
    scale: float
    shift: float = 0.0

    def sample(self, generator: Generators = None) -> Tensor:
        """Latents (n, C, h, w) as the UNet knows them; noise comes from the generator, or from a list of n."""
        latents = self.mean
        if self.std is not None:
            noise = randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
            latents = latents + self.std * noise
        return (latents - self.shift) * self.scale if self.shift else latents * self.scale

    def repeated(self, times: int) -> Encoded:
        """All of the pictures, `times` over."""
        return self._each(lambda part: torch.cat([part] * times))

    def to(self, dtype: torch.dtype) -> Encoded:
        """At that dtype, which noise is drawn in too."""
        return self._each(lambda part: part.to(dtype))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Encoded:
        return replace(self, mean=change(self.mean), std=None if self.std is None else change(self.std))


def encode(vae: Any, pictures: Tensor, *, upcast: bool = False) -> Encoded:
    """Pictures (n, 3, H, W) in [-1, 1] -> the distribution of their latents (n, C, H/f, W/f).

    Where a half-precision VAE overflows, encoding is repeated by a float32 copy of its encoder. With `upcast` a float16
    one does so at once, and the noise of `sample` is float32's whatever the dtype, as in diffusers. Where whole
    pictures do not fit in memory, strips do, with a warning. NonFiniteError if that does not help.
    """
    encoded = _encoded(vae, pictures, wider=upcast and vae.dtype == torch.float16)
    if not _is_finite(encoded.mean) and vae.dtype != torch.float32:
        encoded = _encoded(vae, pictures, wider=True)
    if not _is_finite(encoded.mean):
        raise NonFiniteError(
            "the picture's latents hold NaN or infinity: the picture does, or the weights of the VAE's encoder are "
            "damaged."
        )
    return encoded.to(torch.float32 if upcast else vae.dtype)


def _encoded(vae: Any, pictures: Tensor, *, wider: bool) -> Encoded:
    def work(vae: Any) -> Encoded:
        config, output = vae.config, vae.encode(pictures.to(vae.dtype))
        found = getattr(output, "latent_dist", None)
        mean, std = (output.latents, None) if found is None else (found.mean, found.std)
        return Encoded(mean, std, config.scaling_factor, getattr(config, "shift_factor", None) or 0.0)

    used = copied(vae, pictures.device, torch.float32, UNNEEDED) if wider else vae
    return in_strips_if_need_be(used, work, "encoding the picture")


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(torch.isfinite(tensor).all())
