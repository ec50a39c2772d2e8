"""Which numbers settings of a picture may be, whether they are asked for or read from its record."""

from __future__ import annotations

from collections.abc import Mapping

RANGES: Mapping[str, tuple[int, int]] = {
    "seed": (0, 2**63 - 1),
    "steps": (1, 100_000),
    "width": (8, 65_536),
    "height": (8, 65_536),
    "guidance_scale": (0, 1000),
    "strength": (0, 1),
    "padding_mask_crop": (0, 100_000),
    "control_guidance_start": (0, 1),
    "control_guidance_end": (0, 1),
    "pag_scale": (0, 1000),
}
"""The least and the most, both allowed, by name as records have it."""
