"""Tiny pipelines with random weights, of our own classes: 64x64 pictures, latents 8x8, in milliseconds per step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

from leandiffusion import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*ALPHABET, *(letter + "</w>" for letter in ALPHABET), "<|startoftext|>", "<|endoftext|>"]
LENGTH = 16
NOISE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1,
}  # fmt: skip


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer({t: i for i, t in enumerate(TOKENS)}, [], model_max_length=LENGTH)


def text_encoder(cls: type = CLIPTextModel, width: int = 32, **config: Any) -> Any:
    return cls(
        vocab_size=len(TOKENS), hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, bos_token_id=len(TOKENS) - 2, eos_token_id=len(TOKENS) - 1, **config,
    ).eval()  # fmt: skip


def unet(**config: Any) -> UNet2DConditionModel:
    defaults = {
        "sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8,
        "cross_attention_dim": 32, "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**defaults | config).eval()


def vae(**config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, sample_size=64, **config,
    ).eval()  # fmt: skip


def make_sd1(**components: Any) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    defaults = {
        "vae": vae(), "text_encoder": text_encoder(), "tokenizer": tokenizer(), "unet": unet(),
        "scheduler": DDIMScheduler(**NOISE), "requires_safety_checker": False,
    }  # fmt: skip
    return quiet(StableDiffusionPipeline(**defaults | components))


def make_sdxl(**components: Any) -> StableDiffusionXLPipeline:
    torch.manual_seed(1)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    defaults = {
        "vae": vae(), "text_encoder": text_encoder(), "tokenizer": tokenizer(), "tokenizer_2": tokenizer(),
        "text_encoder_2": text_encoder(CLIPTextModelWithProjection, 40, projection_dim=24),
        "unet": unet(cross_attention_dim=72, projection_class_embeddings_input_dim=24 + 6 * 4, **added),
        "scheduler": DDIMScheduler(**NOISE),
    }  # fmt: skip
    return quiet(StableDiffusionXLPipeline(**defaults | components))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Any, seed: int = 0, **arguments: Any) -> torch.Tensor:
    """Pictures (B, 3, H, W) of a short run from one seed."""
    words = {} if {"prompt", "prompt_embeds"} & set(arguments) else {"prompt": "a red cat"}
    defaults = {"num_inference_steps": 4, "output_type": "pt", "generator": torch.Generator().manual_seed(seed)}
    return pipe(**words | defaults | arguments).images


@pytest.fixture(scope="session")
def draw() -> Callable[..., torch.Tensor]:
    """`draw(pipe, seed, **arguments)`: pictures (B, 3, H, W) of four steps."""
    return paint


@pytest.fixture
def sd1() -> StableDiffusionPipeline:
    return make_sd1()


@pytest.fixture
def sdxl() -> StableDiffusionXLPipeline:
    return make_sdxl()


@pytest.fixture(scope="session")
def build() -> dict[str, Callable[..., Any]]:
    """Makers of pipelines and networks by name: 'sd1', 'sdxl', 'unet', 'vae', 'text_encoder', 'quiet'."""
    return {
        "sd1": make_sd1, "sdxl": make_sdxl, "unet": unet, "vae": vae, "text_encoder": text_encoder, "quiet": quiet,
    }  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipeline folders by family name."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("sd1", "sdxl")}
    make_sd1().save_pretrained(made["sd1"])
    make_sdxl().save_pretrained(made["sdxl"])
    return made
