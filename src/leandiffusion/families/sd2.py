"""Stable Diffusion 2.x: OpenCLIP-H text, linear projections, velocity prediction at 768 px or noise at 512 px.

The 512 px ("base") and 768 px models have the same tensors; what the UNet predicts must be told or guessed.
"""

from __future__ import annotations

from ..weights.convert import Entries, convert_open_clip, convert_unet, convert_vae
from .base import UNET_PREFIX, VAE_PREFIX, Family, NetworkSpec, cross_attention_size, families
from .sd1 import NOISE, UNET, VAE

OPEN_CLIP_H = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": None,
    "num_hidden_layers": 23,  # of 24: the images were conditioned on the last but one
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}


def _recognises(entries: Entries) -> bool:
    return cross_attention_size(entries, "input_blocks.2.1") == 1024


SD2 = families.add(
    "sd2",
    Family(
        name="sd2",
        title="Stable Diffusion 2",
        pipeline="StableDiffusionPipeline",
        networks={
            "text_encoder": NetworkSpec(
                "CLIPTextModel",
                OPEN_CLIP_H,
                "cond_stage_model.model.",
                convert_open_clip,
                elsewhere=("conditioner.embedders.0.model.",),  # as newer training code names it: SD-Turbo
            ),
            "unet": NetworkSpec(
                "UNet2DConditionModel",
                UNET
                | {
                    "sample_size": 96,
                    "cross_attention_dim": 1024,
                    "attention_head_dim": (5, 10, 20, 20),
                    "use_linear_projection": True,
                    "upcast_attention": True,
                },
                UNET_PREFIX,
                convert_unet,
            ),
            "vae": NetworkSpec("AutoencoderKL", VAE | {"sample_size": 768}, VAE_PREFIX, convert_vae),
        },
        tokenizers={"tokenizer": {"pad_token": "!"}},
        scheduler=("DDIMScheduler", NOISE | {"clip_sample": False, "set_alpha_to_one": False}),
        recognises=_recognises,
        size=768,
        ambiguous_prediction=True,
        absent=("safety_checker", "feature_extractor", "image_encoder"),
    ),
)
