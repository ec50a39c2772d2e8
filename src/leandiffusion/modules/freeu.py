"""FreeU: scales backbone features and skip connections in the up path, without training (Si et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FreeU:
    """Scales half of the backbone's channels by `b`, the lowest frequencies of the skip connection by `s`."""

    b: float
    s: float

    def __call__(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W), skip (B, C_skip, H, W) -> both scaled, as copies."""
        half = x.shape[1] // 2
        return torch.cat([x[:, :half] * self.b, x[:, half:]], dim=1), self._softened(skip)

    def _softened(self, skip: Tensor) -> Tensor:
        """The skip connection with its lowest frequencies scaled; in float32, which the Fourier transform needs."""
        H, W = skip.shape[-2:]
        waves = torch.fft.fftshift(torch.fft.fftn(skip.float(), dim=(-2, -1)), dim=(-2, -1))
        gain = torch.ones(H, W, device=skip.device)
        gain[H // 2 - 1 : H // 2 + 1, W // 2 - 1 : W // 2 + 1] = self.s
        softened = torch.fft.ifftn(torch.fft.ifftshift(waves * gain, dim=(-2, -1)), dim=(-2, -1))
        return softened.real.to(skip.dtype)


class FreeUMixin:
    """Mixin of UNets: FreeU under diffusers' names."""

    up_blocks: Any

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (Si et al. 2023) in the two lowest levels of the up path: `b1`, `b2` scale half of the backbone's
        channels, `s1`, `s2` the lowest frequencies of the skip connections."""
        self._set_freeu(FreeU(b1, s1), FreeU(b2, s2), s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Undo `enable_freeu`."""
        self._set_freeu(None, None, s1=None, s2=None, b1=None, b2=None)

    def _set_freeu(self, *levels: FreeU | None, **told: float | None) -> None:
        for block, freeu in zip_longest(self.up_blocks, levels[: len(self.up_blocks)]):
            block.freeu = freeu
            for name, value in told.items():
                setattr(block, name, value)
