"""Stable Diffusion 1.x: CLIP-L text, 860M UNet, 512 px (Rombach et al. 2022)."""

from __future__ import annotations

from ..weights.convert import Entries, convert_clip, convert_unet, convert_vae
from .base import UNET_PREFIX, VAE_PREFIX, Family, NetworkSpec, cross_attention_size, families

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def _recognises(entries: Entries) -> bool:
    return cross_attention_size(entries, "input_blocks.2.1") == 768


SD1 = families.add(
    "sd1",
    Family(
        name="sd1",
        title="Stable Diffusion 1",
        pipeline="StableDiffusionPipeline",
        networks={
            "text_encoder": NetworkSpec(
                "CLIPTextModel",
                CLIP_L,
                "cond_stage_model.transformer.",
                convert_clip,
                elsewhere=("conditioner.embedders.0.transformer.",),
            ),
            "unet": NetworkSpec("UNet2DConditionModel", UNET, UNET_PREFIX, convert_unet),
            "vae": NetworkSpec("AutoencoderKL", VAE, VAE_PREFIX, convert_vae),
        },
        tokenizers={"tokenizer": {}},
        scheduler=("PNDMScheduler", NOISE | {"skip_prk_steps": True, "set_alpha_to_one": False}),
        recognises=_recognises,
        size=512,
        absent=("safety_checker", "feature_extractor", "image_encoder"),
    ),
)
