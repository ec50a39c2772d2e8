"""SSD-1B: Stable Diffusion XL with half the UNet, distilled from it (Gupta et al. 2024, arXiv 2401.02677).

Everything but the UNet is SDXL's. The UNet has fewer transformer blocks, in some levels another number behind each
resnet, and one resnet alone in the middle.
"""

from __future__ import annotations

from dataclasses import replace

from ..weights.convert import Entries
from .base import families
from .sdxl import SDXL, deepest

UNET = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
}


def _recognises(entries: Entries) -> bool:
    return deepest(entries) == 4


SSD1B = families.add(
    "ssd1b", replace(SDXL.with_config("unet", **UNET), name="ssd1b", title="SSD-1B", recognises=_recognises)
)
