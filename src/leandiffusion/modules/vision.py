"""CLIP's vision tower: pictures to embeddings, for the safety checker and for IP-Adapters.

"Learning Transferable Visual Models From Natural Language Supervision", Radford et al. 2021, section 2.4; the tower is
that of Dosovitskiy et al. 2021. Parameter names are those of the published checkpoints.

Letters in shapes: B pictures, T patches and the class token, C hidden size, P projection size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.output import Output
from ..weights.stored import plain
from .clip import CLIPEncoder, CLIPNetwork
from .convolution import Conv2d
from .linear import Linear


@dataclass(eq=False)
class CLIPVisionModelOutput(Output):
    """`last_hidden_state` (B, T, C), `pooler_output` (B, C): the class token after the final layer norm."""

    last_hidden_state: Tensor
    pooler_output: Tensor


@dataclass(eq=False)
class CLIPVisionProjectedOutput(Output):
    """`image_embeds` (B, P), `last_hidden_state` (B, T, C), and if asked for `hidden_states`: what goes into the first
    layer and comes out of each, (B, T, C)."""

    image_embeds: Tensor
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class CLIPVisionEmbeddings(nn.Module):
    """A class token and one token per square patch, with a learned vector per position."""

    def __init__(self, hidden_size: int, channels: int, image_size: int, patch_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.class_embedding = nn.Parameter(torch.randn(hidden_size))
        self.patch_embedding = Conv2d(channels, hidden_size, patch_size, stride=patch_size, padding=0, bias=False)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2 + 1, hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ConfigError(
                f"pictures of {tuple(pixels.shape[-2:])} pixels do not fit this model: preprocess them to "
                f"{self.image_size}x{self.image_size}."
            )
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        first = plain(self.class_embedding)  # which reading a view of would bring into memory for good
        tokens = torch.cat([first.expand(len(pixels), 1, -1), patches], dim=1)  # (B, T, C)
        return tokens + self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))


class CLIPVisionTransformer(nn.Module):
    """Embeddings, encoder and norms: everything under `vision_model.` in a checkpoint."""

    def __init__(self, embeddings: CLIPVisionEmbeddings, encoder: CLIPEncoder, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.pre_layrnorm = nn.LayerNorm(hidden_size, eps=eps)  # spelt so in every checkpoint
        self.encoder = encoder
        self.post_layernorm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, pixels: Tensor, keep_all: bool = False) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        """Pictures (B, channels, side, side) -> tokens (B, T, C), the pooled one (B, C), and with `keep_all` what
        each layer makes."""
        tokens, kept = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), keep_all=keep_all)
        return tokens, self.post_layernorm(tokens[:, 0]), kept


class VisionNetwork(CLIPNetwork):
    """Base of the networks that are a vision tower. The keywords are those of a checkpoint's vision config.

    `initializer_range` and `initializer_factor` are kept in the config and change nothing, and so does `projection_dim`
    where nothing is projected.
    """

    model_type: ClassVar[str] = "clip_vision_model"
    has_projection: ClassVar[bool] = False

    def __init__(
        self,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        projection_dim: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 32,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
    ) -> None:
        super().__init__()
        encoder = CLIPEncoder(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            hidden_act=hidden_act,
            layer_norm_eps=layer_norm_eps,
            attention_dropout=attention_dropout,
        )
        embeddings = CLIPVisionEmbeddings(hidden_size, num_channels, image_size, patch_size)
        self.vision_model = CLIPVisionTransformer(embeddings, encoder, hidden_size, layer_norm_eps)
        if self.has_projection:
            self.visual_projection = Linear(hidden_size, projection_dim, bias=False)


class CLIPVisionModel(VisionNetwork):
    """CLIP's vision transformer."""

    def forward(self, pixel_values: Tensor) -> CLIPVisionModelOutput:
        """Encode pictures (B, channels, image_size, image_size), normalised as CLIP's preprocessing does."""
        tokens, pooled, _ = self.vision_model(pixel_values)
        return CLIPVisionModelOutput(tokens, pooled)


class CLIPVisionModelWithProjection(VisionNetwork):
    """CLIP's vision transformer with the projection to the space that it shares with texts: an IP-Adapter's eyes."""

    has_projection: ClassVar[bool] = True

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> CLIPVisionProjectedOutput:
        """Encode pictures (B, channels, image_size, image_size), normalised as CLIP's preprocessing does."""
        tokens, pooled, kept = self.vision_model(pixel_values, output_hidden_states)
        return CLIPVisionProjectedOutput(self.visual_projection(pooled), tokens, kept)
