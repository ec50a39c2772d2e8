"""Stable Diffusion XL base: CLIP-L and OpenCLIP-bigG text, 2.6B UNet, 1024 px (Podell et al. 2023)."""

from __future__ import annotations

from ..weights.convert import Entries, convert_clip, convert_open_clip, convert_unet, convert_vae, under
from .base import UNET_PREFIX, VAE_PREFIX, Family, NetworkSpec, cross_attention_size, families
from .sd1 import CLIP_L, NOISE, VAE

UNET = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
OPEN_CLIP_BIG_G = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}


def deepest(entries: Entries) -> int | None:
    """Transformer blocks behind one resnet of the lowest level of a UNet that reads both of SDXL's text encoders: 10,
    or fewer in models that were distilled from it, or 0 where the file lacks them. None for all other UNets."""
    if cross_attention_size(entries, "input_blocks.4.1") != 2048:
        return None
    blocks = under(entries, f"{UNET_PREFIX}input_blocks.7.1.transformer_blocks.")
    return len({name.split(".")[0] for name in blocks})


def _recognises(entries: Entries) -> bool:
    return deepest(entries) in (10, 0)


SDXL = families.add(
    "sdxl",
    Family(
        name="sdxl",
        title="Stable Diffusion XL",
        pipeline="StableDiffusionXLPipeline",
        networks={
            "text_encoder": NetworkSpec("CLIPTextModel", CLIP_L, "conditioner.embedders.0.transformer.", convert_clip),
            "text_encoder_2": NetworkSpec(
                "CLIPTextModelWithProjection", OPEN_CLIP_BIG_G, "conditioner.embedders.1.model.", convert_open_clip
            ),
            "unet": NetworkSpec("UNet2DConditionModel", UNET, UNET_PREFIX, convert_unet),
            "vae": NetworkSpec(
                "AutoencoderKL",
                VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
                VAE_PREFIX,
                convert_vae,
            ),
        },
        tokenizers={"tokenizer": {}, "tokenizer_2": {"pad_token": "!"}},
        scheduler=("EulerDiscreteScheduler", NOISE | {"timestep_spacing": "leading"}),
        recognises=_recognises,
        size=1024,
        absent=("feature_extractor", "image_encoder"),
    ),
)
