"""FreeU: louder shapes and softer details on the way up, without training (Si et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FreeU:
    """`b` times half of the channels that come from below, `s` times the lowest frequencies of the skip."""

    b: float
    s: float

    def __call__(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W), skip (B, C_skip, H, W) -> both, changed copies."""
        half = x.shape[1] // 2
        return torch.cat([x[:, :half] * self.b, x[:, half:]], dim=1), self._softened(skip)

    def _softened(self, skip: Tensor) -> Tensor:
        """The skip, its frequencies of less than one wave per map scaled; in float32, as transforms need."""
        H, W = skip.shape[-2:]
        waves = torch.fft.fftshift(torch.fft.fftn(skip.float(), dim=(-2, -1)), dim=(-2, -1))
        gain = torch.ones(H, W, device=skip.device)
        gain[H // 2 - 1 : H // 2 + 1, W // 2 - 1 : W // 2 + 1] = self.s
        softened = torch.fft.ifftn(torch.fft.ifftshift(waves * gain, dim=(-2, -1)), dim=(-2, -1))
        return softened.real.to(skip.dtype)
