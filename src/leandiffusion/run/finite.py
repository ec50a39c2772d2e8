"""Numbers that no picture can come from, found at the stage where they arise."""

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
    """What tells that decoded pictures (B, C, H, W), before they are clamped, are none; None if nothing does.

    NaN and infinity; values beyond RANGE, which clamping would make a plain white or black; and a picture whose every
    pixel is the same although its latents vary: swallowed by a huge bias, say, on the way. Pictures that are meant to
    be white vary by more than rounding before they are clamped, at their edges if nowhere else.
    """
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
    """Of latents (B, C, h, w), which are not one value throughout: (B,)."""
    low, high = torch.aminmax(latents.flatten(1), dim=1)
    return low != high
