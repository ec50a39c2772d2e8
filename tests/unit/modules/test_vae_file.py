"""A VAE from one file: the layouts that VAE files come in give the network that was saved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leandiffusion.core.errors import ConfigError, TensorMismatch
from leandiffusion.modules.vae import AutoencoderKL

# diffusers' names -> the original's, for a VAE of two levels. Decoder levels are counted from the other end there.
BACK = (
    (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.0\.resnets\.", r"up.1.block."),
    (r"up_blocks\.1\.resnets\.", r"up.0.block."),
    (r"up_blocks\.0\.upsamplers\.0\.", r"up.1.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> tuple[AutoencoderKL, Path]:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    network = AutoencoderKL(
        block_out_channels=(32, 64), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    network.save_pretrained(folder)
    return network, folder


def original(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in BACK:
            name = re.sub(pattern, replacement, name)
        is_matrix = ".attn_1." in name and tensor.ndim == 2
        named[name] = tensor[:, :, None, None] if is_matrix else tensor
    return named


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_layouts(vae: tuple[AutoencoderKL, Path], tmp_path: Path, prefix: str, layout: str) -> None:
    network, folder = vae
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    state = original(state) if layout == "original" else state
    others = {"loss.logvar": torch.ones(1), "model_ema.decay": torch.ones(1)}
    save_file({f"{prefix}{name}": t.contiguous() for name, t in (state | others).items()}, tmp_path / "v.safetensors")
    opened = AutoencoderKL.from_single_file(tmp_path / "v.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor), name
    assert opened.config.scaling_factor == 0.18215
    assert opened.config.block_out_channels == [32, 64]


def test_the_scale_of_latents(vae: tuple[AutoencoderKL, Path], tmp_path: Path) -> None:
    state = load_file(vae[1] / "diffusion_pytorch_model.safetensors")
    file = tmp_path / "v.safetensors"
    save_file(state, file)
    assert AutoencoderKL.from_single_file(str(file), scaling_factor=0.13025).config.scaling_factor == 0.13025
    assert AutoencoderKL.from_single_file(file, config=vae[1], torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="scaling_facto="):
        AutoencoderKL.from_single_file(file, scaling_facto=1.0)
    whole = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
    save_file(whole | {"conditioner.embedders.1.model.logit_scale": torch.ones(1)}, file)
    assert AutoencoderKL.from_single_file(file).config.scaling_factor == 0.13025


def test_files_without_a_vae(tmp_path: Path) -> None:
    save_file({"some.thing": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(TensorMismatch, match=r"holds no VAE .1 tensors: some.thing"):
        AutoencoderKL.from_single_file(tmp_path / "x.safetensors")
