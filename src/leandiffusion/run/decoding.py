"""Latents to pictures: the VAE, and what is done where it overflows or does not fit in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..core.errors import NonFiniteError
from ..core.wording import dtype_name
from ..device.memory import is_out_of_memory, release
from .fallbacks import copied, in_strips_if_need_be
from .finite import found_wrong

UNNEEDED = ("encoder", "quant_conv")  # parts of the VAE that encode


def decode(vae: Any, latents: Tensor, *, upcast: bool = False) -> Tensor:
    """Latents (B, C, h, w), as denoised -> pictures (B, 3, H, W) float32 in [0, 1]. See `decode_raw`."""
    return to_unit(decode_raw(vae, latents, upcast=upcast))


@contextmanager
def keeping(latents: Tensor) -> Iterator[None]:
    """Around what makes pictures of denoised latents: if it fails, its error has them as `.latents`."""
    try:
        yield
    except Exception as error:
        error.latents = latents.detach()  # type: ignore[attr-defined]
        error.add_note("The denoised latents are kept as this error's .latents: pipe.decode(error.latents) goes on.")
        raise


def to_unit(pictures: Tensor) -> Tensor:
    """Decoded pictures, which are in [-1, 1] or a little beyond, in [0, 1]; in place."""
    return pictures.div_(2).add_(0.5).clamp_(0, 1)


def decode_raw(vae: Any, latents: Tensor, *, upcast: bool = False) -> Tensor:
    """Latents (B, C, h, w), as denoised -> pictures (B, 3, H, W) float32 in [-1, 1] or a little beyond.

    Where a half-precision VAE overflows (`finite.found_wrong`) decoding is repeated in float32. With `upcast` a float16
    one decodes in float32 at once: SDXL's does overflow, which its config says as force_upcast. Where float32 does not
    fit in memory, bfloat16 takes its place; where whole pictures do not fit, strips do; both with a warning. The VAE
    itself is left as it is. NonFiniteError if no other dtype helps.
    """
    overflows = upcast and vae.dtype == torch.float16
    picture = None if overflows else _decoded(vae, latents)
    dtype = vae.dtype
    wrong = None if picture is None else found_wrong(picture, latents)
    if picture is None or (wrong and dtype != torch.float32):
        picture, dtype = _decoded_wider(vae, latents)
        wrong = found_wrong(picture, latents)
    if wrong:
        raise NonFiniteError(
            f"the decoded picture {wrong} even in {dtype_name(dtype)}: the VAE's weights are damaged, "
            "or the latents are far outside the range it was trained on."
        )
    return picture.float()


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    """What the VAE makes of latents of unit variance, on which the UNet works; in strips if not at once."""
    z = latents.to(vae.dtype) / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    return in_strips_if_need_be(vae, lambda vae: vae.decode(z, return_dict=False)[0], "decoding")


def _decoded_wider(vae: Any, latents: Tensor) -> tuple[Tensor, torch.dtype]:
    """Decoded by a float32 copy, or where that does not fit by a bfloat16 one, whose range is as wide; and which."""
    try:
        return _decoded(copied(vae, latents.device, torch.float32, UNNEEDED), latents), torch.float32
    except (MemoryError, RuntimeError) as error:
        if vae.dtype == torch.bfloat16 or not is_out_of_memory(error):
            raise
    release()
    warnings.warn("decoding in float32 did not fit in memory: this picture is decoded in bfloat16.", stacklevel=2)
    return _decoded(copied(vae, latents.device, torch.bfloat16, UNNEEDED), latents), torch.bfloat16
