"""A VAE from one .safetensors file: alone or inside a whole checkpoint, in the original layout or diffusers'.

What it is made of is read off the shapes. What shapes do not tell, the scale of the latents, is that of SD1 and SD2
unless the file is a whole SDXL checkpoint, or the caller says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import TensorMismatch
from ..weights.check import named_for
from ..weights.convert import Entries, convert_vae, under
from ..weights.header import TensorEntry, read_header
from ..weights.kinds import VAE, mistaken

_PREFIXES = ("first_stage_model.", "vae.", "")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_SDXL = "conditioner.embedders.1."
SDXL_SCALE, SDXL_SIZE = 0.13025, 1024


def read_vae_file(cls: type[Any], path: Path) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """The config that the file's shapes tell, and its tensors by parameter name of `cls`.

    Raises TensorMismatch for a file without a VAE, and what `read_header` raises.
    """
    entries = read_header(path).entries
    found = next((parts for prefix in _PREFIXES if (parts := _parts(under(entries, prefix)))), None)
    if found is None:
        some = ", ".join(list(entries)[:2]) or "nothing"
        raise TensorMismatch(
            mistaken(path, entries, VAE)
            or f"{path} holds no VAE ({len(entries)} tensors: {some} …): expected names such as "
            "decoder.conv_in.weight, alone or under first_stage_model."
        )
    if any(name.startswith(("encoder.down.", "decoder.up.")) for name in found):
        levels = {name.split(".")[2] for name in found if name.startswith("decoder.up.")}
        found = convert_vae(found, {"block_out_channels": levels})
    named = named_for(cls, found)
    config = _config(named, path)
    if any(name.startswith(_SDXL) for name in entries):
        config |= {"scaling_factor": SDXL_SCALE, "sample_size": SDXL_SIZE}
    return config, named


def _parts(entries: Entries) -> dict[str, TensorEntry]:
    """Without what training leaves beside the VAE: losses, averages, counters."""
    parts = {name: entry for name, entry in entries.items() if name.startswith(_PARTS)}
    return parts if "decoder.conv_in.weight" in parts and "encoder.conv_in.weight" in parts else {}


def _config(named: Mapping[str, TensorEntry], path: Path) -> dict[str, Any]:
    channels: list[int] = []
    while (entry := named.get(f"encoder.down_blocks.{len(channels)}.resnets.0.conv1.weight")) is not None:
        channels.append(_size(entry, 0, path))
    layers = 0
    while f"encoder.down_blocks.0.resnets.{layers}.conv1.weight" in named:
        layers += 1
    return {
        "in_channels": _size(named["encoder.conv_in.weight"], 1, path),
        "out_channels": _size(named.get("decoder.conv_out.weight"), 0, path),
        "latent_channels": _size(named["decoder.conv_in.weight"], 1, path),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "use_quant_conv": "quant_conv.weight" in named,
        "use_post_quant_conv": "post_quant_conv.weight" in named,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in named,
        "sample_size": 512,
    }


def _size(entry: TensorEntry | None, axis: int, path: Path) -> int:
    if entry is None or len(entry.shape) != 4:
        what = "lacks decoder.conv_out.weight" if entry is None else f"has {entry.name} of shape {entry.shape}"
        raise TensorMismatch(f"{path} {what}, expected the convolutions of a VAE.")
    return entry.shape[axis]
