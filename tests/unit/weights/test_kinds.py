"""A file that is given as another kind is named as what it is, with what to do with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from leandiffusion import AutoencoderKL, AutoencoderTiny, ControlNetModel, StableDiffusionPipeline
from leandiffusion.core.errors import WeightsError
from leandiffusion.families.inversion import read_inversion
from leandiffusion.families.ip_adapter import read_ip_adapter
from leandiffusion.lora.read import read_lora
from leandiffusion.weights import kinds

FILES: dict[kinds.Kind, list[dict[str, tuple[int, ...]]]] = {
    kinds.MODEL: [
        {"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3), "first_stage_model.decoder.conv_in.bias": (4,)}
    ],
    kinds.LORA: [
        {"unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 8)},
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)},
        {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": (1,)},
        {"down_blocks.0.attentions.0.proj_in.hada_w1_a": (4, 8)},
        {"unet.down_blocks.0.attn1.processor.to_q_lora.down.weight": (4, 8)},
    ],
    kinds.CONTROLNET: [
        {"control_model.input_hint_block.0.weight": (4, 3, 3, 3)},
        {"controlnet_cond_embedding.conv_in.bias": (4,), "down_blocks.0.resnets.0.conv1.bias": (4,)},
    ],
    kinds.IP_ADAPTER: [{"image_proj.proj.weight": (4, 4), "ip_adapter.1.to_k_ip.weight": (4, 4)}],
    kinds.INVERSION: [{"emb_params": (2, 8)}, {"<cat-toy>": (8,)}, {"clip_l": (1, 8), "clip_g": (1, 12)}],
    kinds.VAE: [{"encoder.down_blocks.0.resnets.0.conv1.bias": (4,)}, {"first_stage_model.decoder.conv_in.bias": (4,)}],
    kinds.TINY_VAE: [{"encoder.layers.0.bias": (4,), "decoder.layers.0.bias": (4,)}],
}
OPENERS: dict[kinds.Kind, Callable[[Path], Any]] = {
    kinds.MODEL: StableDiffusionPipeline.from_single_file,
    kinds.LORA: read_lora,
    kinds.CONTROLNET: ControlNetModel.from_single_file,
    kinds.IP_ADAPTER: read_ip_adapter,
    kinds.INVERSION: read_inversion,
    kinds.VAE: AutoencoderKL.from_single_file,
    kinds.TINY_VAE: AutoencoderTiny.from_single_file,
}


def write(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    path = folder / "x.safetensors"
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize("opener", OPENERS, ids=lambda kind: f"as {kind.title}")
@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.title)
def test_a_file_of_another_kind(kind: kinds.Kind, opener: kinds.Kind, tmp_path: Path) -> None:
    if opener == kind or (kind == kinds.MODEL and opener == kinds.VAE):
        pytest.skip("a whole checkpoint holds a VAE")
    for shapes in FILES[kind]:
        path = write(tmp_path, shapes)
        with pytest.raises(WeightsError) as caught:
            OPENERS[opener](path)
        assert str(caught.value).startswith(f"{path} is {kind.title}, expected {opener.title}"), shapes
        assert str(caught.value).endswith(f"{kind.use}."), shapes


@pytest.mark.parametrize("opener", [kinds.LORA, kinds.CONTROLNET, kinds.IP_ADAPTER])
def test_what_is_unknown_is_not_guessed(opener: kinds.Kind, tmp_path: Path) -> None:
    path = write(tmp_path, {"one.thing": (1,), "another.thing": (1,)})
    with pytest.raises(WeightsError, match=r"(one|another)\.thing") as caught:
        OPENERS[opener](path)
    assert not any(kind.title in str(caught.value).partition("expected")[0].replace("no ", "") for kind in FILES)


def test_a_word_may_look_like_another_kinds_name(tmp_path: Path) -> None:
    [learned] = read_inversion(write(tmp_path, {"lora_style": (2, 8)}))
    assert learned.word == "lora_style"
