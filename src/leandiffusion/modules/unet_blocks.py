"""The levels of the UNet: their settings, and the blocks of the down path, the middle and the up path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .blocks import Downsample2D, GradientCheckpointing, ResnetBlock2D, Upsample2D, in_place_allowed, repeat_rows
from .deep import DeepFeature
from .freeu import FreeU
from .transformer import Transformer2DModel


@dataclass(frozen=True)
class Level:
    """What one resolution level is made of."""

    channels: int
    heads: int
    depths: tuple[int, ...]
    """Transformer blocks behind each resnet."""
    context_dim: int
    layers: int

    def transformer(self, depth: int, shared: SharedSettings) -> Transformer2DModel:
        return Transformer2DModel(
            self.channels, self.heads, depth, self.context_dim,
            groups=shared.groups, linear=shared.linear, upcast=shared.upcast,
        )  # fmt: skip

    def layers_from(
        self, ins: Sequence[int], shared: SharedSettings, *, cross: bool
    ) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Resnets of these input channels and, where the level has cross-attention, a transformer behind each.

        They are made in turn, as diffusers makes them, so that a seed gives the initial weights that it gives there.
        """
        resnets, transformers = nn.ModuleList(), nn.ModuleList()
        for c_in, depth in zip(ins, self.depths, strict=True):
            resnets.append(shared.resnet(c_in, self.channels))
            if cross:
                transformers.append(self.transformer(depth, shared))
        return resnets, transformers


@dataclass(frozen=True)
class SharedSettings:
    """The settings that all levels share."""

    temb_channels: int
    groups: int
    eps: float
    linear: bool
    upcast: bool

    def resnet(self, in_channels: int, out_channels: int) -> ResnetBlock2D:
        return ResnetBlock2D(in_channels, out_channels, self.temb_channels, self.groups, self.eps)


class DownBlock2D(GradientCheckpointing):
    """Resnets, each followed by a transformer where the level has cross-attention, then downsampling unless last."""

    cross: ClassVar[bool] = False

    def __init__(self, in_channels: int, level: Level, shared: SharedSettings, *, last: bool) -> None:
        super().__init__()
        ins = [in_channels] + [level.channels] * (level.layers - 1)
        self.resnets, attentions = level.layers_from(ins, shared, cross=self.cross)
        if self.cross:
            self.attentions = attentions
        if not last:
            self.downsamplers = nn.ModuleList([Downsample2D(level.channels)])

    def forward(
        self,
        x: Tensor,
        temb: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        extra: Mapping[str, Any] | None = None,
        count: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, C_in, H, W) -> (B, C, H/2, W/2) and the skip connections, in order of making: the first `count` of them,
        where no more are wanted."""
        skips = []
        attentions = getattr(self, "attentions", None)
        for i, resnet in enumerate(self.resnets):
            x = self.layer(resnet, x, temb)
            x = x if attentions is None else self.layer(attentions[i], x, context, mask, extra)
            skips.append(x)
            if len(skips) == count:
                return x, skips
        for downsampler in getattr(self, "downsamplers", ()):
            x = downsampler(x)
            skips.append(x)
        return x, skips


class CrossAttnDownBlock2D(DownBlock2D):
    """A level of the down path with cross-attention."""

    cross: ClassVar[bool] = True


class UNetMidBlock2DCrossAttn(GradientCheckpointing):
    """resnet, transformer, resnet at the lowest resolution."""

    def __init__(self, level: Level, shared: SharedSettings) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([shared.resnet(level.channels, level.channels)])
        self.attentions = nn.ModuleList([level.transformer(level.depths[0], shared)])
        self.resnets.append(shared.resnet(level.channels, level.channels))

    def forward(
        self,
        x: Tensor,
        temb: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.layer(self.attentions[0], self.layer(self.resnets[0], x, temb), context, mask, extra)
        return self.layer(self.resnets[1], x, temb)


class UNetMidBlock2D(GradientCheckpointing):
    """One resnet at the lowest resolution, without text: the middle of SSD-1B."""

    def __init__(self, level: Level, shared: SharedSettings) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([shared.resnet(level.channels, level.channels)])
        self.attentions = nn.ModuleList()

    def forward(self, x: Tensor, temb: Tensor, *text: Any) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.layer(self.resnets[0], x, temb)


class UpBlock2D(GradientCheckpointing):
    """Resnets that each take one skip connection, each followed by a transformer where the level has cross-attention,
    then upsampling unless last.

    `s1`, `s2`, `b1`, `b2` are the arguments of the network's `enable_freeu`, for scripts that read them; `freeu` is
    what runs.
    """

    cross: ClassVar[bool] = False
    s1: float | None = None
    s2: float | None = None
    b1: float | None = None
    b2: float | None = None

    def __init__(
        self, in_channels: int, level: Level, skip_channels: Sequence[int], shared: SharedSettings, *, last: bool
    ) -> None:
        super().__init__()
        ins = [in_channels] + [level.channels] * (level.layers - 1)
        ins = [c_in + c_skip for c_in, c_skip in zip(ins, skip_channels, strict=True)]
        self.resnets, attentions = level.layers_from(ins, shared, cross=self.cross)
        if self.cross:
            self.attentions = attentions
        if not last:
            self.upsamplers = nn.ModuleList([Upsample2D(level.channels)])
        self.freeu: FreeU | None = None

    def forward(
        self,
        maps: list[Tensor],
        temb: Tensor,
        context: Tensor,
        size: Sequence[int] | None = None,
        mask: Tensor | None = None,
        extra: Mapping[str, Any] | None = None,
        deep: DeepFeature | None = None,
        keep_at: int | None = None,
    ) -> Tensor:
        """Maps (B, C_skip, H, W), the skip connections, and last (B, C_in, H, W) -> (B, C, 2H, 2W), or (B, C, *size).

        Skip connections are one per resnet, the last one first used; with fewer, only the last so many resnets run.
        The list is emptied, unless gradients are recorded: what nobody else holds is freed as soon as it is joined, as
        no argument is while the call lasts. `deep` keeps what reaches resnet `keep_at`.
        """
        attentions = getattr(self, "attentions", None)
        maps = maps if in_place_allowed() else [*maps]  # a checkpointed block is called with the same list again
        x = maps.pop()
        left_out = len(self.resnets) - len(maps)
        for i, resnet in enumerate(self.resnets):
            if i < left_out:
                continue
            if i == keep_at and deep is not None:
                deep.value = x
            x = self._joined(x, maps.pop())  # by itself, so that what is joined is freed before the resnet runs
            x = self.layer(resnet, x, temb)
            x = x if attentions is None else self.layer(attentions[i], x, context, mask, extra)
        for upsampler in getattr(self, "upsamplers", ()):
            H, W = (2 * x.shape[-2], 2 * x.shape[-1]) if size is None else size
            x = upsampler(x, None if (H, W) == (2 * x.shape[-2], 2 * x.shape[-1]) else (H, W))
        return x

    def _joined(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, C, H, W) and a skip connection (B or fewer, C_skip, H, W) -> (B, C + C_skip, H, W)."""
        if self.freeu is not None:
            x, skip = self.freeu(x, skip)
        return torch.cat([x, repeat_rows(skip, len(x))], dim=1)


class CrossAttnUpBlock2D(UpBlock2D):
    """A level of the up path with cross-attention."""

    cross: ClassVar[bool] = True
