"""Tensor names of single-file checkpoints in the original layouts -> those of diffusers and transformers.

The layouts: latent-diffusion's UNet and VAE (Rombach et al. 2022, "openaimodel" and "autoencoder"), and OpenCLIP's text
transformer. Where OpenCLIP fuses q, k and v or stores a matrix transposed, the entries describe slices and transposes,
which are taken while reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.errors import TensorMismatch
from .header import TensorEntry

Entries = Mapping[str, TensorEntry]

_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_CONTROL_ENDS = {
    "middle_block_out.0": "controlnet_mid_block",
    "input_hint_block.0": "controlnet_cond_embedding.conv_in",
    **{f"input_hint_block.{2 * i + 2}": f"controlnet_cond_embedding.blocks.{i}" for i in range(6)},
    "input_hint_block.14": "controlnet_cond_embedding.conv_out",
}
_VAE_RULES = (
    (r"^(encoder)\.down\.(\d+)\.block\.", r"\1.down_blocks.\2.resnets."),
    (r"^(encoder)\.down\.(\d+)\.downsample\.", r"\1.down_blocks.\2.downsamplers.0."),
    (r"^(decoder)\.up\.(\d+)\.block\.", r"\1.up_blocks.\2.resnets."),
    (r"^(decoder)\.up\.(\d+)\.upsample\.", r"\1.up_blocks.\2.upsamplers.0."),
    (r"\.mid\.block_1\.", r".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", r".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", r".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", r".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
    (r"\.norm_out\.", r".conv_norm_out."),
)
_OPEN_CLIP_ENDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def under(entries: Entries, prefix: str) -> dict[str, TensorEntry]:
    """The tensors whose names begin with `prefix`, named without it."""
    return {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}


def convert_unet(entries: Entries, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """latent-diffusion's UNet -> UNet2DConditionModel of that config. Names it does not know stay as they are.

    The original numbers all blocks of one direction through; ours by level, and by kind within a level.
    """
    blocks = _unet_blocks(len(config["block_out_channels"]), config["layers_per_block"])
    return {_unet_name(name, blocks): entry for name, entry in entries.items()}


def convert_controlnet(entries: Entries, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """The original ControlNet (Zhang et al. 2023) -> ControlNetModel of that config: a UNet's down path and middle, the
    convolutions behind each of its blocks, and those of the picture. Names it does not know stay as they are."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    behind = {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(levels * (layers + 1))}
    blocks = _unet_blocks(levels, layers) | _CONTROL_ENDS | behind
    return {_unet_name(name, blocks): entry for name, entry in entries.items()}


def original_unet_names(layers: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """The names that latent-diffusion's UNet has for layers of our UNet2DConditionModel of that config -> ours."""
    originals: dict[str, list[str]] = {}
    for original, ours in _unet_blocks(len(config["block_out_channels"]), config["layers_per_block"]).items():
        originals.setdefault(ours, []).append(original)
    within = {new: old for old, new in _UNET_RESNET.items()}
    names: dict[str, str] = {}
    for layer in layers:
        parts = layer.split(".")
        for length in range(len(parts), 0, -1):
            block, rest = ".".join(parts[:length]), ".".join(parts[length:])
            if ".resnets." in block:
                rest = within.get(rest, rest)
            for original in originals.get(block, ()):
                names[f"{original}.{rest}" if rest else original] = layer
    return names


def convert_vae(entries: Entries, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """latent-diffusion's autoencoder -> AutoencoderKL. The original counts decoder levels from the finest."""
    last = len(config["block_out_channels"]) - 1
    converted: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        for pattern, replacement in _VAE_RULES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"(?<=^decoder\.up_blocks\.)\d+", lambda found: str(last - int(found[0])), name)
        converted[name] = entry
    return converted


def convert_clip(entries: Entries, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """CLIP as transformers names it, which is how the original files hold CLIP-L.

    What some tools save beside the text model, because they hold all of CLIP, is left out.
    """
    return {name: entry for name, entry in entries.items() if name not in ("logit_scale", "text_projection.weight")}


def convert_open_clip(entries: Entries, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """OpenCLIP's text transformer -> CLIPTextModel(WithProjection) of that config.

    Layers past `num_hidden_layers` are left out, and so is the projection where the config has `projection_dim` None:
    SD2 reads the last but one layer and nothing behind it. Raises TensorMismatch for fused weights that do not split.
    """
    converted: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        if name in ("logit_scale", "attn_mask") or name.startswith("visual."):
            continue
        if name == "text_projection":
            if config.get("projection_dim") is not None:
                converted["text_projection.weight"] = entry.transposed()
        elif found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name):
            if int(found[1]) < config["num_hidden_layers"]:
                converted |= _open_clip_layer(f"text_model.encoder.layers.{found[1]}", found[2], entry)
        else:
            converted[_OPEN_CLIP_ENDS.get(name, name)] = entry
    return converted


def _unet_blocks(levels: int, layers: int) -> dict[str, str]:
    """Original block -> ours: `input_blocks.4.1` -> `down_blocks.1.attentions.0` and so on."""
    blocks = dict(_UNET_ENDS)
    for level in range(levels):
        for layer in range(layers):
            block = f"input_blocks.{1 + level * (layers + 1) + layer}"
            blocks[f"{block}.0"] = f"down_blocks.{level}.resnets.{layer}"
            blocks[f"{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
        blocks[f"input_blocks.{(level + 1) * (layers + 1)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for layer in range(layers + 1):
            block = f"output_blocks.{level * (layers + 1) + layer}"
            blocks[f"{block}.0"] = f"up_blocks.{level}.resnets.{layer}"
            blocks[f"{block}.1"] = f"up_blocks.{level}.attentions.{layer}"
        for place in (1, 2):  # behind the resnet, or behind resnet and attention
            blocks[f"{block}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return blocks


def _unet_name(name: str, blocks: Mapping[str, str]) -> str:
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):  # the longest known block wins
        block = blocks.get(".".join(parts[:length]))
        if block is not None:
            rest = ".".join(parts[length:])
            return f"{block}.{_renamed(rest, _UNET_RESNET) if '.resnets.' in block else rest}"
    return name


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Rename `module.weight` or `module.bias` by its module."""
    module, _, leaf = name.rpartition(".")
    return f"{names.get(module, module)}.{leaf}"


def _open_clip_layer(layer: str, name: str, entry: TensorEntry) -> dict[str, TensorEntry]:
    if not (fused := re.fullmatch(r"attn\.in_proj_(weight|bias)", name)):
        return {f"{layer}.{_renamed(name, _OPEN_CLIP_LAYER)}": entry}
    if not entry.shape or entry.shape[0] % 3:
        raise TensorMismatch(
            f"{entry.file}: {entry.name!r} has shape {entry.shape}, expected 3 x C rows of q, k and v."
        )
    size = entry.shape[0] // 3
    return {
        f"{layer}.self_attn.{part}_proj.{fused[1]}": entry.rows(i * size, (i + 1) * size)
        for i, part in enumerate("qkv")
    }
