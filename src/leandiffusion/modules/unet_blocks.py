"""The levels of the UNet: what one is made of, and the blocks on the way down, in the middle, and on the way up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blocks import Downsample2D, ResnetBlock2D, Upsample2D
from .transformer import Transformer2DModel


@dataclass(frozen=True)
class Level:
    """What one resolution level is made of."""

    channels: int
    heads: int
    depth: int
    context_dim: int
    layers: int

    def transformer(self, shared: Shared) -> Transformer2DModel:
        return Transformer2DModel(
            self.channels, self.heads, self.depth, self.context_dim,
            groups=shared.groups, linear=shared.linear, upcast=shared.upcast,
        )  # fmt: skip


@dataclass(frozen=True)
class Shared:
    """What all levels have in common."""

    temb_channels: int
    groups: int
    eps: float
    linear: bool
    upcast: bool

    def resnet(self, in_channels: int, out_channels: int) -> ResnetBlock2D:
        return ResnetBlock2D(in_channels, out_channels, self.temb_channels, self.groups, self.eps)


class DownBlock(nn.Module):
    """Resnets, each followed by a transformer where the level has cross-attention, then halving unless last."""

    def __init__(self, in_channels: int, level: Level, shared: Shared, *, cross: bool, last: bool) -> None:
        super().__init__()
        ins = [in_channels] + [level.channels] * (level.layers - 1)
        self.resnets = nn.ModuleList(shared.resnet(c_in, level.channels) for c_in in ins)
        if cross:
            self.attentions = nn.ModuleList(level.transformer(shared) for _ in ins)
        if not last:
            self.downsamplers = nn.ModuleList([Downsample2D(level.channels)])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C_in, H, W) -> (B, C, H/2, W/2) and the skips for the way up, in order of making."""
        skips = []
        attentions = getattr(self, "attentions", None)
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            x = x if attentions is None else attentions[i](x, context)
            skips.append(x)
        for downsampler in getattr(self, "downsamplers", ()):
            x = downsampler(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """resnet, transformer, resnet at the lowest resolution."""

    def __init__(self, level: Level, shared: Shared) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(shared.resnet(level.channels, level.channels) for _ in range(2))
        self.attentions = nn.ModuleList([level.transformer(shared)])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.attentions[0](self.resnets[0](x, temb), context)
        return self.resnets[1](x, temb)


class UpBlock(nn.Module):
    """Resnets that each take one skip in, a transformer after each under cross-attention, doubling unless last."""

    def __init__(
        self, in_channels: int, level: Level, skip_channels: Sequence[int], shared: Shared, *, cross: bool, last: bool
    ) -> None:
        super().__init__()
        ins = [in_channels] + [level.channels] * (level.layers - 1)
        self.resnets = nn.ModuleList(
            shared.resnet(c_in + c_skip, level.channels) for c_in, c_skip in zip(ins, skip_channels, strict=True)
        )
        if cross:
            self.attentions = nn.ModuleList(level.transformer(shared) for _ in ins)
        if not last:
            self.upsamplers = nn.ModuleList([Upsample2D(level.channels)])

    def forward(
        self, x: Tensor, skips: Sequence[Tensor], temb: Tensor, context: Tensor, size: Sequence[int] | None = None
    ) -> Tensor:
        """(B, C_in, H, W) -> (B, C, 2H, 2W), or (B, C, *size). `skips` are one per resnet, the last one first used."""
        attentions = getattr(self, "attentions", None)
        for i, resnet in enumerate(self.resnets):
            x = torch.cat([x, skips[-1 - i]], dim=1)  # of its own, so that what was joined is free before the resnet
            x = resnet(x, temb)
            x = x if attentions is None else attentions[i](x, context)
        for upsampler in getattr(self, "upsamplers", ()):
            H, W = (2 * x.shape[-2], 2 * x.shape[-1]) if size is None else size
            x = upsampler(x, None if (H, W) == (2 * x.shape[-2], 2 * x.shape[-1]) else (H, W))
        return x
