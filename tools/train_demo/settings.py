"""Shapes of the demo model's networks and the length of its training, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LATENT = 16
"""Side of the latents of a 128x128 picture."""

VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 96],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,  # few groups: the norms of narrow layers cost more than their convolutions
    "sample_size": 128,
    "force_upcast": False,
    "scaling_factor": 1.0,  # until the latents have been measured
}

UNET_CONFIG: dict[str, Any] = {
    "sample_size": LATENT,
    "block_out_channels": [64, 128, 96],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "use_linear_projection": True,
}

TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "projection_dim": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "hidden_act": "quick_gelu",
}

# Zero terminal SNR (Lin et al. 2023) lets flat backgrounds of any brightness come out; it needs v-prediction.
SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class VaeTraining:
    """Crops first, because they are cheap; whole pictures at the end, so that the mid-block sees its real size."""

    crop_steps: int = 3000
    crop_batch: int = 32
    whole_steps: int = 400
    whole_batch: int = 8
    rate: float = 1.2e-3
    kl_weight: float = 1e-4
    """Nats per latent component, against mean absolute error per pixel in [-1, 1]."""


@dataclass(frozen=True)
class UnetTraining:
    """UNet and text model together, on latents encoded beforehand."""

    steps: int = 14_000
    batch: int = 64
    pool: int = 40_000
    """Scenes encoded and kept; each is met many times, with fresh captions, noise and timesteps."""
    rate: float = 1e-3
    decay: float = 0.2
    """The last share of the steps, over which the rate falls: before it, `steps` may still be changed."""
    noisy: float = 0.3
    """Share of timesteps drawn from the noisiest two fifths of the schedule; the rest are uniform."""
    pairs: float = 0.45
    """Share of scenes with two shapes."""
    caption_dropout: float = 0.1
    """Share of empty captions, which classifier-free guidance needs (Ho & Salimans 2022)."""
