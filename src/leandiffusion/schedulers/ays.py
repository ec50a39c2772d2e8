"""Few steps where they count most: the schedules of "Align Your Steps", Sabour, Fidler & Kreis, arXiv 2404.14507.

Ten steps each, found by minimising a bound on the error of the sampler. Timesteps are for `timesteps=` of a call,
sigmas (with the one after the last step) for `sigmas=`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

AysSchedules: Mapping[str, Sequence[float]] = MappingProxyType(
    {
        "StableDiffusionTimesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        "StableDiffusionSigmas": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0],
        "StableDiffusionXLTimesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
        "StableDiffusionXLSigmas": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0],
    }
)
"""Schedules by diffusers' names."""
