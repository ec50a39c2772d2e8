from __future__ import annotations

import numpy as np
import pytest

from leandiffusion.core.errors import ConfigError
from leandiffusion.measure.quality import psnr, ssim

metrics = pytest.importorskip("skimage.metrics", reason="the oracle is scikit-image")


def _pair(*shape: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture in float32, and the same with noise."""
    rng = np.random.default_rng(seed)
    waves = [np.cos(np.linspace(0, (i + 2) * 3, n)) for i, n in enumerate(shape)]
    picture = np.asarray(sum(np.ix_(*waves))) / (2 * len(shape)) + 0.5
    noisy = np.clip(picture + rng.normal(0, noise, shape), 0, 1)
    return noisy.astype(np.float32), picture.astype(np.float32)


@pytest.mark.parametrize("noise", [1e-3, 0.02, 0.3])
@pytest.mark.parametrize("shape", [(11, 11, 3), (40, 57, 3)])
def test_ssim_is_scikit_image_s(shape: tuple[int, ...], noise: float) -> None:
    """Within 1e-10: both in double precision, where variances lose a few digits to E[x²] - E[x]², and C2 = 9e-4
    bounds quotients. scikit-image averages over windows inside the picture only, as we do, so borders do not differ.
    """
    x, y = _pair(*shape, noise=noise)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = metrics.structural_similarity(x.astype(float), y.astype(float), channel_axis=-1, **options)
    assert ssim(x, y) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("noise", [1e-3, 0.02, 0.3])
def test_psnr_is_scikit_image_s(noise: float) -> None:
    """Within 1e-9 dB: the same sum in double precision."""
    x, y = _pair(2, 40, 57, 3, noise=noise)
    expected = metrics.peak_signal_noise_ratio(y.astype(float), x.astype(float), data_range=1)
    assert psnr(x, y) == pytest.approx(expected, abs=1e-9)


def test_a_batch_is_the_mean_of_its_pictures() -> None:
    x, y = _pair(3, 20, 24, 3, noise=0.1)
    assert ssim(x, y) == pytest.approx(np.mean([ssim(a, b) for a, b in zip(x, y, strict=True)]), abs=1e-12)


def test_the_same_picture_has_no_noise() -> None:
    x, _ = _pair(1, 16, 16, 3, noise=0.1)
    assert psnr(x, x.copy()) is None
    assert ssim(x, x.copy()) == pytest.approx(1, abs=1e-12)  # a quotient of sums that are the same but for rounding


def test_half_precision_is_measured_in_double() -> None:
    x, y = (each.astype(np.float16) for each in _pair(24, 24, 3, noise=0.02))
    assert psnr(x, y) == psnr(x.astype(np.float64), y.astype(np.float64))
    assert ssim(x, y) == ssim(x.astype(np.float64), y.astype(np.float64))


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    ("picture", "reference", "told"),
    [
        (np.zeros((16, 16, 3)), np.zeros((16, 17, 3)), "same shape"),
        (np.zeros((16, 16)), np.zeros((16, 16)), r"\(H, W, 3\)"),
        (np.zeros((1, 3, 16, 16)), np.zeros((1, 3, 16, 16)), r"\(B, H, W, 3\)"),
        (np.zeros((0, 16, 16, 3)), np.zeros((0, 16, 16, 3)), r"\(B, H, W, 3\)"),
        (np.full((16, 16, 3), 255.0), np.zeros((16, 16, 3)), "divide 8-bit ones by 255"),
        (np.zeros((16, 16, 3)), np.full((16, 16, 3), np.nan), r"\[0, 1\]"),
    ],
)
def test_what_is_no_picture_is_refused(measure, picture: np.ndarray, reference: np.ndarray, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        measure(picture, reference)


def test_a_picture_smaller_than_the_window_has_no_ssim() -> None:
    x, y = _pair(10, 64, 3, noise=0.1)
    assert psnr(x, y) is not None
    with pytest.raises(ConfigError, match="11 x 11"):
        ssim(x, y)
