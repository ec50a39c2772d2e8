"""The networks of Stable Diffusion 1.5 at full size against diffusers', once: `pytest -m slow tests/parity`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leandiffusion import AutoencoderKL, UNet2DConditionModel
from leandiffusion.families.sd1 import UNET, VAE

diffusers = pytest.importorskip("diffusers")

# Relative to the largest entry: float32 adds up over 25 blocks in another order on either side.
TOLERANCE = 1e-4


def share_weights(theirs: torch.nn.Module, cls: type, config: Any) -> Any:
    """Our network with the very tensors of diffusers', so that the weights are in memory once."""
    theirs.requires_grad_(False).eval()
    with torch.device("meta"):
        ours = cls.from_config(config)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    assert next(ours.parameters()).data_ptr() == next(theirs.parameters()).data_ptr()
    return ours.eval()


def difference(expected: torch.Tensor, got: torch.Tensor) -> float:
    assert expected.std() > 1e-3
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.slow
@torch.inference_mode()
def test_unet_forward_at_512_pixels() -> None:
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(**UNET)
    ours = share_weights(theirs, UNet2DConditionModel, UNET)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 859_520_964
    x, text = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
    for t in (999, 21):
        found = difference(theirs(x, t, text).sample, ours(x, t, text).sample)
        print(f"UNet at t={t}: {found:.2e}")
        assert found < TOLERANCE


@pytest.mark.slow
@torch.inference_mode()
def test_vae_at_256_pixels() -> None:
    torch.manual_seed(1)
    theirs = diffusers.AutoencoderKL(**VAE)
    ours = share_weights(theirs, AutoencoderKL, VAE)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 83_653_863
    z, picture = torch.randn(1, 4, 32, 32), torch.rand(1, 3, 256, 256) * 2 - 1
    decoded = difference(theirs.decode(z).sample, ours.decode(z).sample)
    encoded = difference(theirs.encode(picture).latent_dist.parameters, ours.encode(picture).latent_dist.parameters)
    print(f"VAE: decode {decoded:.2e}, encode {encoded:.2e}")
    assert max(decoded, encoded) < TOLERANCE
