"""The autoencoder by itself: distribution, refusals, old names. Its numbers: tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from leandiffusion.core.errors import ConfigError
from leandiffusion.modules.vae import AutoencoderKL, DiagonalGaussianDistribution

TINY: dict[str, Any] = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": 16,
}  # fmt: skip
UNSUPPORTED: dict[str, Any] = {
    "act_fn": "gelu",
    "shift_factor": 0.1159,
    "latents_mean": [-1.6, 2.7, 1.0, -1.5],
    "latents_std": [8.4, 6.0, 5.8, 6.4],
}


def make(**config: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**TINY | config).eval()


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_unsupported_values_are_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"AutoencoderKL does not support {key}="):
        make(**{key: UNSUPPORTED[key]})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"down_block_types": ("DownEncoderBlock2D",)}, "down_block_types=.*'DownEncoderBlock2D' for each of the 2"),
        ({"up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")}, "up_block_types=.*'UpDecoderBlock2D' for"),
    ],
)
def test_other_blocks(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(**config)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"does not support the config key scale_factor=0\.18"):
        AutoencoderKL.from_config({**TINY, "scale_factor": 0.18})


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (24, 10)])
def test_shapes_and_ways_to_say_the_same(size: tuple[int, int]) -> None:
    vae, pictures = make(), torch.rand(2, 3, *size) * 2 - 1
    kept = pictures.clone()
    distribution = vae.encode(pictures).latent_dist
    latents = distribution.mode()
    assert latents.shape == (2, 4, size[0] // 2, size[1] // 2)
    assert torch.equal(vae.encode(pictures, return_dict=False)[0].mean, latents)
    decoded = vae.decode(latents).sample
    assert decoded.shape == pictures.shape
    assert torch.equal(vae.decode(latents, return_dict=False)[0], decoded)
    assert torch.equal(vae(pictures).sample, decoded)
    assert torch.equal(vae(pictures, return_dict=False)[0], decoded)
    drawn = vae.decode(distribution.sample(torch.Generator().manual_seed(3))).sample
    assert torch.equal(vae(pictures, sample_posterior=True, generator=torch.Generator().manual_seed(3)).sample, drawn)
    assert torch.equal(pictures, kept)


def test_gradients_do_not_change_the_result() -> None:
    """Where nobody differentiates, activations overwrite their inputs. Equal up to float32 sums."""
    vae, pictures = make(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        plain = vae(pictures).sample
    differentiable = vae(pictures).sample
    differentiable.square().mean().backward()
    torch.testing.assert_close(plain, differentiable, rtol=1e-5, atol=1e-6)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_the_distribution() -> None:
    """Statistics of 200 000 draws: the mean within 5 standard errors (0.011 std), the deviation within 1%."""
    parameters = torch.randn(1, 6, 1, 1)
    distribution = DiagonalGaussianDistribution(parameters.expand(200_000, 6, 1, 1))
    mean, std = parameters[:, :3], (0.5 * parameters[:, 3:]).exp()
    draws = distribution.sample(torch.Generator().manual_seed(0))
    assert ((draws.mean(0) - mean[0]).abs() < 0.012 * std[0]).all()
    torch.testing.assert_close(draws.std(0), std[0], rtol=0.01, atol=0)
    assert torch.equal(draws, distribution.sample(torch.Generator().manual_seed(0)))
    assert not torch.equal(draws, distribution.sample(torch.Generator().manual_seed(1)))
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(distribution.kl()[:2], expected.expand(2), rtol=1e-5, atol=1e-6)


def test_extreme_variances_stay_finite() -> None:
    distribution = DiagonalGaussianDistribution(torch.tensor([0.0, 0.0, 1e6, -1e6]).view(1, 4, 1, 1))
    assert distribution.std.isfinite().all()
    assert distribution.kl().isfinite().all()


def test_without_quant_convs_and_mid_attention() -> None:
    vae = make(use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False)
    assert not any("quant" in name or "attentions" in name for name in vae.state_dict())
    parts = {name.split(".")[0] for name in make().state_dict()}
    assert parts == {"encoder", "decoder", "quant_conv", "post_quant_conv"}


def test_old_names() -> None:
    old = {
        "decoder.mid_block.attentions.0.query.weight": "decoder.mid_block.attentions.0.to_q.weight",
        "encoder.mid_block.attentions.0.key.bias": "encoder.mid_block.attentions.0.to_k.bias",
        "encoder.mid_block.attentions.0.value.weight": "encoder.mid_block.attentions.0.to_v.weight",
        "decoder.mid_block.attentions.0.proj_attn.bias": "decoder.mid_block.attentions.0.to_out.0.bias",
        "decoder.mid_block.attentions.0.group_norm.bias": "decoder.mid_block.attentions.0.group_norm.bias",
        "decoder.mid_block.attentions.0.to_q.weight": "decoder.mid_block.attentions.0.to_q.weight",
        "encoder.conv_in.weight": "encoder.conv_in.weight",
    }
    assert AutoencoderKL.rename_keys(list(old)) == old
