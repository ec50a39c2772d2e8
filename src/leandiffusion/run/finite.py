"""NaN, infinity and other values that cannot become a picture, found at the stage where they arise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import NonFiniteError

RANGE = 100.0
"""A decoder is trained to give -1 to 1. Latents that are nothing like its training's take it to some tens, since its
group norms bound what reaches the last layer; beyond this only weights do that are damaged or overflowed."""


def check_finite(name: str, tensor: Tensor | None, why: str) -> None:
    """NonFiniteError if `tensor` holds NaN or infinity; `why` is what may have caused it and what to do."""
    if tensor is not None and not torch.isfinite(tensor).all():
        raise NonFiniteError(f"{name} hold NaN or infinity ({tensor.dtype}): {why}")


def found_wrong(picture: Tensor, latents: Tensor) -> str | None:
    """What is wrong with decoded pictures (B, C, H, W) that are not clamped yet; None when nothing is.

    Wrong are NaN and infinity; values beyond RANGE, which clamping would turn into plain white or black; and a picture
    with the same value in every pixel although its latents vary, as a huge bias on the way leaves it. Pictures that are
    meant to be white vary by more than rounding before they are clamped, at their edges if nowhere else. Nothing is
    wrong with a picture without numbers, on the meta device.
    """
    if picture.is_meta:
        return None
    low, high = (bound.float() for bound in torch.aminmax(picture.flatten(2), dim=2))
    if not (torch.isfinite(low) & torch.isfinite(high)).all():
        return "holds NaN or infinity"
    largest = max(-low.min().item(), high.max().item())
    if largest > RANGE:
        return f"holds values of {largest:.3g} where -1 to 1 is expected"
    if picture[0, 0].numel() > 1 and ((low == high).all(dim=1) & varied(latents)).any():
        return "has the same value in every pixel"
    return None


def varied(latents: Tensor) -> Tensor:
    """For each of the latents (B, C, h, w) whether it holds more than one value: (B,) of bool."""
    low, high = torch.aminmax(latents.flatten(1), dim=1)
    return low != high
