"""What IP-Adapters make of a picture's embedding: tokens that the UNet attends to (Ye et al. 2023, sec. 3.2).

Parameter names are those of the published files.

Letters in shapes: R pictures, T tokens of the image encoder, D its width, S tokens for the UNet, C their width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..attention.sdpa import fused_attention
from .linear import Linear

HEAD = 64
"""Channels of a head of the resampler."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of a file's tensors, by name."""


class PooledProjection(nn.Module):
    """One embedding to several tokens: the plain IP-Adapter's."""

    sees_tokens = False
    """Whether it takes the tokens of the image encoder's last layer but one, or its projected embedding."""

    def __init__(self, width: int, out: int, tokens: int) -> None:
        super().__init__()
        self.proj = Linear(width, tokens * out)
        self.norm = nn.LayerNorm(out)

    @classmethod
    def of(cls, shapes: Shapes) -> PooledProjection:
        """As a file's shapes say; KeyError, ValueError and the like where they do not fit together."""
        (wide, width), (out,) = shapes["proj.weight"], shapes["norm.weight"]
        return cls(width, out, wide // out)

    @property
    def widths(self) -> tuple[int, int]:
        """D and C."""
        return self.proj.in_features, self.norm.normalized_shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """(R, D) -> (R, S, C)."""
        return self.norm(self.proj(x).unflatten(-1, (-1, self.widths[1])))


class TokenProjection(nn.Module):
    """Each token of the image encoder to one for the UNet: the full-face IP-Adapter's."""

    sees_tokens = True

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(Linear(width, width), nn.GELU(), Linear(width, out), nn.LayerNorm(out))

    @classmethod
    def of(cls, shapes: Shapes) -> TokenProjection:
        """As a file's shapes say; KeyError and ValueError where they do not fit together."""
        (width, _), (out,) = shapes["proj.0.weight"], shapes["proj.3.weight"]
        return cls(width, out)

    @property
    def widths(self) -> tuple[int, int]:
        """D and C."""
        return self.proj[0].in_features, self.proj[2].out_features  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """(R, T, D) -> (R, T, C)."""
        return self.proj(x)


class PerceiverAttention(nn.Module):
    """Learned latents attend to the picture's tokens and to themselves (Jaegle et al. 2021)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = Linear(width, inner, bias=False)
        self.to_kv = Linear(width, 2 * inner, bias=False)
        self.to_out = Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x (R, T, C'), latents (R, S, C') -> (R, S, C')."""
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (each.unflatten(-1, (-1, HEAD)).transpose(1, 2) for each in (self.to_q(latents), k, v))
        return self.to_out(fused_attention(q, k, v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """The picture's tokens to a fixed number of them: IP-Adapter Plus's (Ye et al. 2023, sec. 4.1, after Flamingo)."""

    sees_tokens = True

    def __init__(self, width: int, hidden: int, out: int, tokens: int, inner: int, depth: int, wide: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, hidden) / hidden**0.5)
        self.proj_in = Linear(width, hidden)
        self.proj_out = Linear(hidden, out)
        self.norm_out = nn.LayerNorm(out)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(hidden, inner),
                    nn.Sequential(
                        nn.LayerNorm(hidden), Linear(hidden, wide, bias=False), nn.GELU(),
                        Linear(wide, hidden, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )  # fmt: skip

    @classmethod
    def of(cls, shapes: Shapes) -> Resampler:
        """As a file's shapes say; KeyError and ValueError where they do not fit together."""
        (_, tokens, hidden), (_, width) = shapes["latents"], shapes["proj_in.weight"]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
        inner, wide = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        return cls(width, hidden, shapes["proj_out.weight"][0], tokens, inner, depth, wide)

    @property
    def widths(self) -> tuple[int, int]:
        """D and C."""
        return self.proj_in.in_features, self.proj_out.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(R, T, D) -> (R, S, C)."""
        x, latents = self.proj_in(x), self.latents.repeat(len(x), 1, 1)
        for attention, feed_forward in self.layers:  # type: ignore[misc]
            latents = latents + attention(x, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


Projection = PooledProjection | TokenProjection | Resampler


def projection_of(shapes: Shapes) -> Projection | None:
    """The projection that a file's tensors are for, without its weights' numbers; None where it is none of these."""
    marks = {"proj.weight": PooledProjection, "proj.3.weight": TokenProjection, "latents": Resampler}
    kind = next((kind for mark, kind in marks.items() if mark in shapes), None)
    return None if kind is None else kind.of(shapes)
