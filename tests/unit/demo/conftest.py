"""What the demo tests share: pictures made soft and noisy, as a decoder leaves them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

Picture = npt.NDArray[np.uint8]


def _soften(picture: Picture, rng: np.random.Generator, sigma: float = 1.0, noise: float = 6.0) -> Picture:
    """Gaussian blur of `sigma` pixels, then gaussian noise of `noise` of 255 levels."""
    reach = int(4 * sigma + 1)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    values = picture.astype(np.float32)
    for axis in (0, 1):
        padding = [(0, 0)] * 3
        padding[axis] = (reach, reach)
        padded = np.pad(values, padding, mode="edge")
        length = values.shape[axis]
        values = np.stack([w * padded.take(range(i, i + length), axis) for i, w in enumerate(weights)]).sum(0)
    return np.clip(values + rng.normal(0, noise, values.shape) + 0.5, 0, 255).astype(np.uint8)


@pytest.fixture
def soften() -> Callable[..., Picture]:
    return _soften
