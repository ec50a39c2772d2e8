"""IP-Adapters with random weights, for any UNet, in the layout of the published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from leandiffusion.families.ip_adapter import text_layers
from leandiffusion.modules.image_projection import PooledProjection, Projection, Resampler, TokenProjection
from leandiffusion.modules.vision import CLIPVisionModelWithProjection

HIDDEN, PROJECTED, SIDE, PATCH = 32, 24, 28, 7
"""Of the image encoder: its width, that of its embedding, and pixels along its pictures' and patches' sides."""

KINDS = ("plain", "plus", "full")
ENCODER = {
    "hidden_size": HIDDEN, "intermediate_size": 48, "projection_dim": PROJECTED, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH, "hidden_act": "gelu",
}  # fmt: skip


def projection(kind: str, width: int) -> Projection:
    """The projection of an adapter of that kind, to tokens of that width."""
    if kind == "plain":
        return PooledProjection(PROJECTED, width, 4)
    if kind == "full":
        return TokenProjection(HIDDEN, width)
    return Resampler(HIDDEN, 40, width, tokens=5, inner=128, depth=4, wide=160)


def tensors(unet: Any, kind: str = "plain", seed: int = 0, gain: float = 1.0) -> dict[str, Tensor]:
    """A whole adapter by the names that files have. `unet` is one of ours."""
    torch.manual_seed(seed)
    layers = list(text_layers(unet).values())
    width = layers[0].cross_attention_dim
    found = {f"image_proj.{name}": t.detach() for name, t in projection(kind, width).state_dict().items()}
    for number, layer in enumerate(layers):
        for what in "kv":
            weight = gain * torch.randn(layer.to_k.out_features, width) / width**0.5
            found[f"ip_adapter.{2 * number + 1}.to_{what}_ip.weight"] = weight
    return {name: t.contiguous() for name, t in found.items()}


def save_encoder(folder: Path, seed: int = 0) -> None:
    """An image encoder with random weights, in a folder that transformers opens too."""
    torch.manual_seed(seed)
    network = CLIPVisionModelWithProjection(**ENCODER)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(folder)


def save_adapter(folder: Path, unet: Any, kind: str = "plain", **how: Any) -> Path:
    """A repository's folder: models/KIND.safetensors, and models/image_encoder."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    if not (folder / "models" / "image_encoder").exists():
        save_encoder(folder / "models" / "image_encoder")
    save_file(tensors(unet, kind, **how), folder / "models" / f"{kind}.safetensors")
    return folder / "models" / f"{kind}.safetensors"
