"""Classifier-free guidance (Ho & Salimans 2022), its rescaling, and networks that take its scale as an input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..modules.blocks import is_untouched, sinusoid
from ..modules.unet import UNet2DConditionModel


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: `scale` 1 or less switches it off.

    `rescale` in [0, 1] pulls the guided prediction's contrast back (Lin et al. 2023, sec. 3.4). `distilled` networks
    take the scale as an input and are never run twice.
    """

    scale: float
    rescale: float = 0.0
    distilled: bool = False

    @classmethod
    def of(cls, model: Any) -> Self:
        """As a pipeline's settings and its UNet are now."""
        return cls(model.guidance_scale, model.guidance_rescale, embedding_width(model.unet) is not None)

    @property
    def doubles(self) -> bool:
        """Whether each step makes two predictions, the unconditional and the conditional one."""
        return self.scale > 1 and not self.distilled

    def combine(self, predictions: Tensor) -> Tensor:
        """Unconditional and conditional predictions, one batch (2B, ...) -> the guided one (B, ...)."""
        unconditional, conditional = predictions.chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        return rescale_contrast(guided, conditional, self.rescale) if self.rescale > 0 else guided


def rescale_contrast(guided: Tensor, reference: Tensor, amount: float) -> Tensor:
    """Bring `guided` (B, ...) towards the standard deviation of `reference`: Lin et al. 2023, equations 15 and 16."""
    axes = list(range(1, guided.ndim))
    matched = guided * (reference.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return amount * matched + (1 - amount) * guided


def embedding_width(unet: Any) -> int | None:
    """Width of the guidance embedding that a distilled UNet takes as `timestep_cond`; None for others."""
    return getattr(getattr(unet, "config", None), "time_cond_proj_dim", None)


def is_ours(unet: Any) -> bool:
    """Whether the network is our UNet as it is: then it takes one sample for several texts, and remembers them.

    Who replaced it or its forward, or looks at what it is given, gets a sample for each text as in diffusers.
    """
    own = isinstance(unet, UNet2DConditionModel) and type(unet).forward is UNet2DConditionModel.forward
    return own and is_untouched(unet)


def embed_guidance(scales: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Guidance scales (B,) as an input of a distilled network, (B, dim): Meng et al. 2023, sec. 3.1."""
    return sinusoid(1000 * (scales.float() - 1), dim, flip_sin_to_cos=False, freq_shift=1).to(dtype)
