"""What the VAE does where it does not fit in memory or overflows: strips, and copies at a wider dtype."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..device.memory import is_out_of_memory, release
from ..modules.vae import AutoencoderKL

T = TypeVar("T")


def in_strips_if_need_be(vae: Any, work: Callable[[Any], T], doing: str) -> T:
    """`work(vae)`; where that does not fit in memory, of the same VAE in strips, with a warning that names `doing`."""
    try:
        return work(vae)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(vae, AutoencoderKL) or vae.use_tiling or not is_out_of_memory(error):
            raise
    release()  # only here: in the handler above the failed attempt's tensors are still held
    warnings.warn(
        f"{doing} did not fit in memory and goes on in strips: pipe.enable_vae_tiling() does so from the start.",
        stacklevel=2,
    )
    strips = copy.copy(vae)  # the same weights: calls in other threads go on using the VAE as it is
    strips.use_tiling = strips.use_slicing = True
    return work(strips)


def copied(vae: Any, device: torch.device, dtype: torch.dtype, without: tuple[str, ...]) -> Any:
    """A copy at that dtype without those parts; calls in other threads go on using the VAE as it is."""
    unneeded = [getattr(vae, name, None) for name in without]
    memo = {id(part): torch.nn.Identity() for part in unneeded if part is not None}
    return copy.deepcopy(vae, memo).to(device, dtype)
