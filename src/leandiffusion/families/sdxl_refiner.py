"""SDXL's refiner: OpenCLIP-bigG text alone, a UNet of four levels that is told an aesthetic score, for the last part of
drawing (Podell et al. 2023, sec. 2.5)."""

from __future__ import annotations

from dataclasses import replace

from ..weights.convert import Entries, convert_unet
from .base import UNET_PREFIX, NetworkSpec, cross_attention_size, families
from .sdxl import SDXL
from .sdxl import UNET as BASE

UNET = {
    **BASE,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (384, 768, 1536, 1536),
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "projection_class_embeddings_input_dim": 2560,
}


def _recognises(entries: Entries) -> bool:
    return cross_attention_size(entries, "input_blocks.4.1") == 1280


SDXL_REFINER = families.add(
    "sdxl_refiner",
    replace(
        SDXL,
        name="sdxl_refiner",
        title="Stable Diffusion XL refiner",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        networks={
            "text_encoder_2": replace(SDXL.networks["text_encoder_2"], prefix="conditioner.embedders.0.model."),
            "unet": NetworkSpec("UNet2DConditionModel", UNET, UNET_PREFIX, convert_unet),
            "vae": SDXL.networks["vae"],
        },
        tokenizers={"tokenizer_2": SDXL.tokenizers["tokenizer_2"]},
        recognises=_recognises,
        absent=("text_encoder", "tokenizer", *SDXL.absent),
        settings={"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    ),
)
