"""Segmind-Vega: Stable Diffusion XL with three tenths of the UNet, distilled (Gupta et al. 2024, arXiv 2401.02677).

Everything but the UNet is SDXL's; the UNet's middle is one resnet, as SSD-1B's.
"""

from __future__ import annotations

from dataclasses import replace

from ..weights.convert import Entries
from .base import families
from .sdxl import SDXL, deepest

UNET = {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": (1, 1, 2)}


def _recognises(entries: Entries) -> bool:
    return deepest(entries) == 2


VEGA = families.add(
    "vega", replace(SDXL.with_config("unet", **UNET), name="vega", title="Segmind-Vega", recognises=_recognises)
)
