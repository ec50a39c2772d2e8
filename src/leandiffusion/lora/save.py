"""Writing a LoRA in the layout of diffusers and PEFT: `unet.….lora_A.weight`, `unet.….lora_B.weight`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.aside import aside
from ..core.errors import ConfigError, NotSupported
from ..modules.factors import LowRank
from .fit import Pieces
from .names import place_of
from .read import METADATA

FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a folder."""


def layers_of(pieces: Pieces) -> dict[str, Tensor]:
    """An adapter's factors on one network, by PEFT's names without that of the network.

    The layout has no scale: it is multiplied into lora_B, in float32, which rounds where it is no power of two.
    NotSupported for products of factors (LoHa, LoKr) and for convolutions with a third factor: merge these instead.
    """
    tensors: dict[str, Tensor] = {}
    for layer, piece in pieces.items():
        if not isinstance(piece.kind, LowRank) or "mid" in piece.factors:
            raise NotSupported(
                f"{layer} has the factors {', '.join(piece.factors)}, which diffusers' layout of LoRAs has no place "
                "for: merge them into the model with fuse_lora."
            )
        down, up = (piece.factors[name] for name in ("down", "up"))
        tensors[f"{layer}.lora_A.weight"] = down.read(down.dtype).contiguous()
        scaled = up.read(torch.float32) * piece.scale if piece.scale != 1 else up.read(up.dtype)
        tensors[f"{layer}.lora_B.weight"] = scaled.to(up.dtype).contiguous()
    return tensors


def check_layers(network: str, layers: Mapping[str, Any]) -> None:
    """ConfigError for names that are no factors of a LoRA, and for what is no tensor."""
    for name, tensor in layers.items():
        if place_of(f"{network}.{name}") is None:
            raise ConfigError(
                f"{name!r} is no factor of a LoRA of the {network}: expected names such as "
                "mid_block.attentions.0.….to_q.lora_A.weight, as peft.get_peft_model_state_dict gives them."
            )
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"{name!r} of the {network} is a {type(tensor).__name__}, expected a tensor.")


def write_lora(path: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write the tensors, with PEFT's settings of their networks if there are any. A file of that name is replaced when
    the new one is complete."""
    metadata = {"format": "pt"}
    if settings:
        lists = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
        metadata[METADATA] = json.dumps(lists, indent=2, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with aside(path) as place:
        save_file(own, place, metadata=metadata)
        place.replace(path)
