"""Folders that diffusers and transformers write open here, and folders written here open there, weight for weight.

Values are compared bit for bit: a checkpoint is moved, never computed with.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import nn

from leandiffusion.families.folder import open_folder
from leandiffusion.modules.text import CLIPTextModel, CLIPTextModelWithProjection
from leandiffusion.modules.tokenizer import CLIPTokenizer
from leandiffusion.modules.unet import UNet2DConditionModel
from leandiffusion.modules.vae import AutoencoderKL
from leandiffusion.weights.load import open_network
from leandiffusion.weights.save import save_network

UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 4,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": [32, 32], "sample_size": 16, "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 49408, "projection_dim": 24,
}  # fmt: skip


def theirs(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "unet":
        return diffusers.UNet2DConditionModel(**UNET)
    if kind == "vae":
        return diffusers.AutoencoderKL(**VAE)
    config = transformers.CLIPTextConfig(**{**TEXT, "vocab_size": 99})
    projected = kind == "text with projection"
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


OURS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text": CLIPTextModel,
    "text with projection": CLIPTextModelWithProjection,
}


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """By name, without the prefix that versions of transformers disagree about."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in network.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}


def same(a: nn.Module, b: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    ours, others = weights(a), weights(b)
    return ours.keys() == others.keys() and all(torch.equal(ours[n].to(dtype), others[n].to(dtype)) for n in ours)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "200KB"])
@pytest.mark.parametrize("kind", OURS)
def test_theirs_opens_here(tmp_path: Path, kind: str, variant: str | None, size: str) -> None:
    network = theirs(kind)
    network.save_pretrained(tmp_path, variant=variant, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "200KB" and kind in ("unet", "vae"))
    assert same(open_network(OURS[kind], tmp_path, variant=variant), network)
    half = open_network(OURS[kind], tmp_path, variant=variant, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    assert same(network, half, torch.bfloat16)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "200KB"])
@pytest.mark.parametrize("kind", OURS)
def test_ours_opens_there(tmp_path: Path, kind: str, variant: str | None, size: str) -> None:
    theirs(kind).save_pretrained(tmp_path / "theirs")
    network = open_network(OURS[kind], tmp_path / "theirs")
    save_network(network, tmp_path / "ours", variant=variant, max_shard_size=size)
    cls = type(theirs(kind))
    assert same(cls.from_pretrained(tmp_path / "ours", variant=variant), network)


@pytest.mark.parametrize("old", ["index.fp16.json", "fp16.index.json"])
def test_the_older_shard_names(tmp_path: Path, old: str) -> None:
    """`…-00001-of-00002.fp16.safetensors`, with either name of the index that was written beside them."""
    network = theirs("unet")
    network.save_pretrained(tmp_path, variant="fp16", max_shard_size="200KB")
    stem = "diffusion_pytorch_model"
    index = tmp_path / f"{stem}.safetensors.index.fp16.json"
    text = index.read_text()
    for shard in tmp_path.glob("*.safetensors"):
        name = shard.name.replace(f"{stem}.fp16", stem).replace(".safetensors", ".fp16.safetensors")
        text = text.replace(shard.name, name)
        shard.rename(tmp_path / name)
    index.unlink()
    (tmp_path / f"{stem}.safetensors.{old}").write_text(text)
    assert same(open_network(UNet2DConditionModel, tmp_path, variant="fp16"), network)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny Stable Diffusion pipeline of diffusers, saved plain and as fp16 variant."""
    folder = tmp_path_factory.mktemp("pipeline")
    CLIPTokenizer.standard().save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(**UNET),
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "saved")
    pipe.save_pretrained(folder / "saved", variant="fp16")
    return folder / "saved", pipe


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_pipeline_folder_of_diffusers(pipeline: tuple[Path, Any], variant: str | None) -> None:
    folder, pipe = pipeline
    opened = open_folder(folder, variant=variant)
    for name in ("unet", "vae", "text_encoder"):
        assert same(opened[name], getattr(pipe, name)), name
    assert opened["safety_checker"] is None
    assert opened["feature_extractor"] is None
    ids = opened["tokenizer"]("a photo of a cat", padding="max_length").input_ids
    assert ids == pipe.tokenizer("a photo of a cat", padding="max_length").input_ids
    for key in ("beta_schedule", "steps_offset", "skip_prk_steps"):
        assert opened["scheduler"].config[key] == pipe.scheduler.config[key]


def test_the_same_numbers_come_out(pipeline: tuple[Path, Any]) -> None:
    """One forward of each network. Tolerance 1e-5 of the largest value: float32 sums in another order."""
    folder, pipe = pipeline
    opened = open_folder(folder)
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 32, generator=generator)
    ids = torch.randint(0, 49405, (2, 77), generator=generator)
    with torch.no_grad():
        pairs = [
            (opened["unet"](latents, 7, text).sample, pipe.unet.eval()(latents, 7, text).sample),
            (opened["vae"].decode(latents).sample, pipe.vae.eval().decode(latents).sample),
            (opened["text_encoder"](ids)[0], pipe.text_encoder.eval()(ids)[0]),
        ]
    for ours, expected in pairs:
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_safety_checker(tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as Theirs

    from leandiffusion.modules.safety import StableDiffusionSafetyChecker

    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": 30, "patch_size": 15}  # fmt: skip
    torch.manual_seed(0)
    checker = Theirs(transformers.CLIPConfig(vision_config=vision, projection_dim=64))
    checker.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_network(StableDiffusionSafetyChecker, tmp_path, dtype=torch.float16)
    assert torch.equal(opened.concept_embeds, checker.concept_embeds.half())
    assert not [name for name, tensor in opened.state_dict().items() if tensor.is_meta]
