"""How far a picture is from a reference: PSNR, and SSIM (Wang et al. 2004), in numpy."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError

Picture: TypeAlias = npt.NDArray[np.floating[Any]]
"""One picture (H, W, 3) or several (B, H, W, 3), in [0, 1]."""

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03
"""Of Wang et al. 2004, sec. III: the Gaussian window in pixels, and the constants that keep quotients finite."""

ROUNDING = 1e-3
"""How far beyond [0, 1] a picture's numbers may lie: half-precision rounding, not another range of values."""


def psnr(picture: Picture, reference: Picture) -> float | None:
    """Peak signal-to-noise ratio in dB, of the mean squared error over all of the batch; None where both are the same.

    ConfigError for shapes that are not those of pictures or differ, and for numbers outside [0, 1].
    """
    x, y = _checked(picture, reference)
    error = float(np.mean(np.square(x - y)))
    return -10 * math.log10(error) if error else None


def ssim(picture: Picture, reference: Picture) -> float:
    """Structural similarity, at most 1, which means the same: mean over all windows, channels and pictures.

    Only windows that lie wholly inside the picture count, so nothing is made up at its border. ConfigError as for
    `psnr`, and for pictures smaller than a window, 11 pixels.
    """
    x, y = _checked(picture, reference)
    if min(x.shape[1:3]) < WINDOW:
        raise ConfigError(f"SSIM looks at windows of {WINDOW} x {WINDOW} pixels, more than a picture {x.shape} has.")
    return float(np.mean([_similarity(one, other) for one, other in zip(x, y, strict=True)]))


def _similarity(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Wang et al. 2004, eq. 13, of two pictures (H, W, C), averaged."""
    mu_x, mu_y = _smooth(x), _smooth(y)
    var_x, var_y = _smooth(x * x) - mu_x * mu_x, _smooth(y * y) - mu_y * mu_y
    cov = _smooth(x * y) - mu_x * mu_y
    C1, C2 = K1**2, K2**2
    above = (2 * mu_x * mu_y + C1) * (2 * cov + C2)
    below = (mu_x * mu_x + mu_y * mu_y + C1) * (var_x + var_y + C2)
    return float(np.mean(above / below))


def _smooth(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gaussian averages (H - 10, W - 10, C) of a picture (H, W, C), along rows and then along columns."""
    distances = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (distances / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        length = x.shape[axis] - WINDOW + 1
        total = np.zeros((*x.shape[:axis], length, *x.shape[axis + 1 :]))
        for i, weight in enumerate(weights):
            total += weight * x[(slice(None),) * axis + (slice(i, i + length),)]
        x = total
    return x


def _checked(picture: Picture, reference: Picture) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Both as batches (B, H, W, 3) in double precision."""
    if picture.shape != reference.shape:
        raise ConfigError(f"a picture {picture.shape} and its reference {reference.shape} must have the same shape.")
    for each in (picture, reference):
        if each.ndim not in (3, 4) or each.shape[-1] != 3 or not each.size:
            raise ConfigError(f"a picture has the shape (H, W, 3) or (B, H, W, 3), found {each.shape}.")
        low, high = float(each.min()), float(each.max())
        if not (-ROUNDING <= low and high <= 1 + ROUNDING):  # NaN fails this too
            raise ConfigError(
                f"a picture's numbers lie in [0, 1], found {low:g} to {high:g}: divide 8-bit ones by 255."
            )
    x, y = (each.astype(np.float64).reshape(-1, *each.shape[-3:]) for each in (picture, reference))
    return x, y
