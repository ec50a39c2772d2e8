"""UNet and VAE against diffusers' with the same random weights, one forward pass at a time, in float32.

Tolerance: 1e-4 of the largest entry. Both sides add in different orders (fused attention, SiLU before or after a
repeat), which costs about 1e-6 per layer; anything computed otherwise costs far more, as the tests of single inputs
show. Weights are scaled up so that every layer matters.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from leandiffusion.modules.unet import UNet2DConditionModel
from leandiffusion.modules.vae import AutoencoderKL

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
TINY: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24, "attention_head_dim": 4,
}  # fmt: skip
SD2: dict[str, Any] = {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}
SDXL: dict[str, Any] = {
    "block_out_channels": (16, 32, 32), "attention_head_dim": (2, 4, 4), "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3), "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 12 + 6 * 8,
}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd1, four levels": {
        "block_out_channels": (8, 16, 16, 16), "layers_per_block": 2, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "sd2": SD2,
    "sdxl": SDXL,
    "inpainting": {"in_channels": 9},
    "lcm": {"time_cond_proj_dim": 20},
    "lcm sdxl": SDXL | {"time_cond_proj_dim": 20},
    "no middle": {"mid_block_type": None},
    "a middle without text": {"mid_block_type": "UNetMidBlock2D"},
    "one of everything else": {
        "out_channels": 8, "flip_sin_to_cos": False, "freq_shift": 1, "time_embedding_dim": 40, "norm_eps": 1e-3,
        "layers_per_block": (2, 1), "cross_attention_dim": (24, 24), "act_fn": "swish",
        "transformer_layers_per_block": (1, 2), "reverse_transformer_layers_per_block": (2, 3),
    },
}  # fmt: skip
VAES: dict[str, dict[str, Any]] = {
    "sd1": {},
    "three levels": {
        "block_out_channels": (8, 8, 16), "layers_per_block": 2, "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3, "scaling_factor": 0.13025, "force_upcast": False,
    },
    "without quant convs": {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16},
    "no attention, other channels": {"mid_block_add_attention": False, "in_channels": 4, "out_channels": 1},
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": 16, "act_fn": "swish",
}  # fmt: skip
OURS: dict[str, Any] = {"UNet2DConditionModel": UNet2DConditionModel, "AutoencoderKL": AutoencoderKL}


def pair(name: str, config: dict[str, Any], seed: int = 0) -> tuple[Any, Any]:
    """diffusers' class and ours of that name with the same lively random weights: (theirs, ours)."""
    torch.manual_seed(seed)
    theirs = getattr(diffusers, name)(**config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter * 1.3 if parameter.ndim > 1 else parameter + 0.1 * torch.randn_like(parameter))
    ours = OURS[name](**config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(
    ("name", "config"),
    [*(("UNet2DConditionModel", TINY | config) for config in UNETS.values()),
     *(("AutoencoderKL", VAE | config) for config in VAES.values())],
    ids=[*UNETS, *(f"vae, {name}" for name in VAES)],
)  # fmt: skip
def test_a_seed_gives_the_initial_weights_that_it_gives_in_diffusers(name: str, config: dict[str, Any]) -> None:
    """Bit for bit: the same layers draw from the same generator, in the same order."""
    theirs, ours = (_seeded(kind, config) for kind in (getattr(diffusers, name), OURS[name]))
    assert [key for key in theirs if not torch.equal(theirs[key], ours[key])] == []


def _seeded(kind: Any, config: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return kind(**config).state_dict()


def unet_inputs(unet: Any, height: int, width: int) -> dict[str, Any]:
    """Everything that the config asks for, for two pictures at different timesteps."""
    torch.manual_seed(1)
    config, inputs = unet.config, {}
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = torch.randn(2, config.time_cond_proj_dim)
    if config.addition_embed_type is not None:
        sizes = torch.tensor([[1024.0, 768, 0, 8, 512, 640], [64, 64, 3, 0, 64, 64]])
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 12), "time_ids": sizes}
    return {
        "sample": torch.randn(2, config.in_channels, height, width),
        "timestep": torch.tensor([13, 981]),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        **inputs,
    }


def residuals(unet: Any, height: int, width: int) -> dict[str, Any]:
    """What a ControlNet adds: one tensor for each skip connection, and one for the middle block."""
    torch.manual_seed(2)
    channels, layers = unet.config.block_out_channels, unet.config.layers_per_block
    shapes = [(channels[0], height, width)]
    for level, size in enumerate(channels):
        shapes += [(size, height, width)] * layers
        if level < len(channels) - 1:
            height, width = -(-height // 2), -(-width // 2)
            shapes.append((size, height, width))
    made = [0.5 * torch.randn(2, *shape) for shape in shapes]
    return {
        "down_block_additional_residuals": made,
        "mid_block_additional_residual": 2 * torch.randn(2, channels[-1], height, width),
    }


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert expected.std() > 0.05, "a result near zero would prove nothing"
    assert (got - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("size", [(8, 8), (13, 7), (5, 18)], ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unet(name: str, size: tuple[int, int]) -> None:
    theirs, ours = pair("UNet2DConditionModel", TINY | UNETS[name])
    inputs = unet_inputs(theirs, *size)
    assert_close(ours(**inputs).sample, theirs(**inputs).sample)


@pytest.mark.parametrize("name", ["sd1", "sd1, four levels", "sdxl"])
@torch.no_grad()
def test_controlnet_residuals(name: str) -> None:
    theirs, ours = pair("UNet2DConditionModel", TINY | UNETS[name])
    inputs, added = unet_inputs(theirs, 12, 10), residuals(theirs, 12, 10)
    expected = theirs(**inputs, **added).sample
    assert_close(ours(**inputs, **added).sample, expected)
    for part, value in added.items():
        negated = -value if isinstance(value, Tensor) else [-each for each in value]
        difference = theirs(**inputs, **{**added, part: negated}).sample - expected
        assert difference.abs().max() > 100 * TOLERANCE * expected.abs().max(), f"{part} matters"


@pytest.mark.parametrize("name", ["sdxl", "lcm sdxl"])
@torch.no_grad()
def test_every_conditioning_matters(name: str) -> None:
    """By a hundred times the tolerance, so that agreement above means that each was heard."""
    _, ours = pair("UNet2DConditionModel", TINY | UNETS[name])
    inputs = unet_inputs(ours, 8, 8)
    expected = ours(**inputs).sample
    changes: dict[str, Any] = {
        "timestep": torch.tensor([500, 20]),
        "encoder_hidden_states": inputs["encoder_hidden_states"].flip(1, 2),
    }
    if "timestep_cond" in inputs:
        changes["timestep_cond"] = -inputs["timestep_cond"]
    for change in changes:
        difference = ours(**{**inputs, change: changes[change]}).sample - expected
        assert difference.abs().max() > 100 * TOLERANCE * expected.abs().max(), change
    for part, value in inputs["added_cond_kwargs"].items():
        added = {**inputs["added_cond_kwargs"], part: value.flip(0)}
        difference = ours(**{**inputs, "added_cond_kwargs": added}).sample - expected
        assert difference.abs().max() > 100 * TOLERANCE * expected.abs().max(), part


@pytest.mark.parametrize("size", [(16, 16), (22, 12)], ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", VAES)
@torch.no_grad()
def test_vae(name: str, size: tuple[int, int]) -> None:
    theirs, ours = pair("AutoencoderKL", VAE | VAES[name])
    config = theirs.config
    torch.manual_seed(1)
    pictures = torch.rand(2, config.in_channels, *size) * 2 - 1
    expected, got = theirs.encode(pictures).latent_dist, ours.encode(pictures).latent_dist
    assert_close(got.parameters, expected.parameters)
    drawn = [each.sample(torch.Generator().manual_seed(4)) for each in (got, expected)]
    assert_close(*drawn)
    assert_close(got.kl(), expected.kl())
    latents = torch.randn(2, config.latent_channels, size[0] // 2, size[1] // 2)
    assert_close(ours.decode(latents).sample, theirs.decode(latents).sample)
    assert_close(ours(pictures).sample, theirs(pictures).sample)


@torch.no_grad()
def test_a_vae_with_the_old_attention_names(tmp_path: Path) -> None:
    """Written before diffusers 0.12, some of them with the weights as 1x1 convolutions."""
    theirs, _ = pair("AutoencoderKL", VAE, seed=3)
    theirs.save_config(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        for new, former in old.items():
            if f".attentions.0.{new}." in name:
                name = name.replace(new, former)
                tensor = tensor[:, :, None, None] if tensor.ndim == 2 and "encoder" in name else tensor
        state[name] = tensor.contiguous()
    assert sum("proj_attn" in name for name in state) == 4
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    ours = AutoencoderKL.from_pretrained(tmp_path)
    pictures = torch.rand(1, 3, 16, 16)
    assert_close(ours(pictures).sample, theirs(pictures).sample)


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "AutoencoderKL"])
def test_the_same_keywords(name: str) -> None:
    """Each of diffusers' config keys, in its order and with its default."""
    ours = {"UNet2DConditionModel": UNet2DConditionModel, "AutoencoderKL": AutoencoderKL}[name]
    expected = inspect.signature(getattr(diffusers, name).__init__).parameters
    got = inspect.signature(ours.__init__).parameters
    assert list(got) == list(expected)
    for key, parameter in expected.items():
        assert got[key].default == parameter.default, key
