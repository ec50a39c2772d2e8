"""Tiny pipelines with random weights, built and saved by diffusers' and transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = [("r", "e"), ("re", "d</w>"), ("c", "a"), ("ca", "t</w>"), ("t", "h"), ("th", "e</w>"), ("a", "n</w>")]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*ALPHABET, *(letter + "</w>" for letter in ALPHABET), *(left + right for left, right in MERGES), BOS, EOS]
LENGTH = 24

UNET = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 64,
}  # fmt: skip
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SD1_NOISE = NOISE | {"skip_prk_steps": True, "set_alpha_to_one": False}


def enliven(network: torch.nn.Module, gain: float) -> Any:
    """Random weights that make every input matter: fresh ones leave a network nearly linear in its latents alone."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(gain)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def make_tokenizer(pad_token: str = EOS) -> Any:
    from transformers import CLIPTokenizer

    vocab = {token: index for index, token in enumerate(TOKENS)}
    return CLIPTokenizer(vocab=vocab, merges=MERGES, pad_token=pad_token, model_max_length=LENGTH)


def make_text_encoder(width: int, *, projection: int | None = None, layers: int = 3, act: str = "quick_gelu") -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(TOKENS), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=LENGTH, hidden_act=act, projection_dim=projection or width,
        bos_token_id=TOKENS.index(BOS), eos_token_id=TOKENS.index(EOS),
    )  # fmt: skip
    return enliven((CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config), 1.5)


def make_unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return enliven(UNet2DConditionModel(**UNET | config), 1.3)


def make_vae(**config: Any) -> Any:
    from diffusers import AutoencoderKL

    return enliven(AutoencoderKL(**VAE | config), 1.3)


def make_sd1(unet: dict[str, Any] | None = None, **components: Any) -> Any:
    """CLIP-L's layout and one number of heads for all levels."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    torch.manual_seed(1)
    return StableDiffusionPipeline(
        vae=make_vae(), text_encoder=make_text_encoder(32), tokenizer=make_tokenizer(),
        unet=make_unet(cross_attention_dim=32, attention_head_dim=4, **unet or {}),
        scheduler=PNDMScheduler(**SD1_NOISE), requires_safety_checker=False,
        **{"safety_checker": None, "feature_extractor": None} | components,
    )  # fmt: skip


def make_sd2() -> Any:
    """Linear projections, heads per level, upcast attention, velocity; text by OpenCLIP's layout, padded with '!'."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(2)
    unet = make_unet(
        cross_attention_dim=40, attention_head_dim=(4, 8), use_linear_projection=True, upcast_attention=True
    )
    return StableDiffusionPipeline(
        vae=make_vae(), text_encoder=make_text_encoder(40, act="gelu"), tokenizer=make_tokenizer("!"), unet=unet,
        scheduler=DDIMScheduler(**NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def make_sdxl(unet: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Two text encoders, several transformer blocks per level, pooled text and sizes."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(3)
    blocks = {"transformer_layers_per_block": (1, 2)} | (unet or {})
    network = make_unet(
        cross_attention_dim=32 + 40, attention_head_dim=(4, 8), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8, **blocks,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=make_vae(scaling_factor=0.13025, force_upcast=True), unet=network,
        scheduler=EulerDiscreteScheduler(**NOISE), text_encoder=make_text_encoder(32), tokenizer=make_tokenizer(),
        text_encoder_2=make_text_encoder(40, projection=24, act="gelu"), tokenizer_2=make_tokenizer("!"),
        add_watermarker=False, **settings,
    )  # fmt: skip


def make_ssd1b() -> Any:
    """SDXL with other depths within a level, and one resnet alone in the middle."""
    depths = {"transformer_layers_per_block": (1, (2,)), "reverse_transformer_layers_per_block": ((1, 3), 1)}
    return make_sdxl(unet={"mid_block_type": "UNetMidBlock2D"} | depths)


def make_vega() -> Any:
    """SDXL with fewer transformer blocks, and one resnet alone in the middle."""
    return make_sdxl(unet={"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": (1, 1)})


MAKERS: dict[str, Callable[..., Any]] = {
    "sd1": make_sd1,
    "sd2": make_sd2,
    "sdxl": make_sdxl,
    "ssd1b": make_ssd1b,
    "vega": make_vega,
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """By family name: a folder that diffusers saved, and its pipeline opened from there. Made once, on first use."""
    made: dict[str, tuple[Any, Path]] = {}

    def make(name: str) -> tuple[Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            saved = MAKERS[name]()
            saved.save_pretrained(folder)
            # Opened again: settings that a scheduler had left at their defaults are no longer told from others.
            theirs = type(saved).from_pretrained(folder)
            theirs.set_progress_bar_config(disable=True)
            made[name] = theirs, folder
        return made[name]

    return make


@pytest.fixture(scope="session")
def build_sd1() -> Callable[..., Any]:
    """diffusers' SD1 pipeline with other components, or other settings of its UNet."""
    return make_sd1
