"""The two halves of the VAE, encoder and decoder, and the levels they are made of.

Parameter names are those of diffusers checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import Downsample2D, GradientCheckpointing, GroupNorm, ResnetBlock2D, Upsample2D, silu
from .convolution import Conv2d
from .processors import CustomProcessor
from .transformer import Attention

_EPS = 1e-6  # of every norm in the VAE


class AttentionBlock(Attention):
    """Self-attention of one head over all pixels, behind a group norm, with a residual."""

    residual_connection = True

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, heads=1, bias=True)
        self.group_norm: GroupNorm = GroupNorm(groups, channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, H, W) -> (B, C, H, W)."""
        if isinstance(self.backend, CustomProcessor):  # norm and residual are the processor's work
            return self.backend.run(self, x, None, None, {})
        B, C, H, W = x.shape
        tokens = self.group_norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)
        return super().forward(tokens).reshape(B, H, W, C).permute(0, 3, 1, 2) + x


class UNetMidBlock2D(GradientCheckpointing):
    """resnet, attention, resnet at the lowest resolution."""

    def __init__(self, channels: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock2D(channels, channels, None, groups, _EPS)])
        self.attentions = nn.ModuleList([AttentionBlock(channels, groups)] if attention else [])
        self.resnets.append(ResnetBlock2D(channels, channels, None, groups, _EPS))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.layer(self.resnets[0], x)
        for attention in self.attentions:
            x = self.layer(attention, x)
        return self.layer(self.resnets[1], x)


class EncoderBlock(nn.Module):
    """Resnets, then halving of the resolution except in the last block."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels if i == 0 else out_channels, out_channels, None, groups, _EPS)
            for i in range(layers)
        )
        if not last:
            self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H/2, W/2), or (B, C_out, H, W) in the last block."""
        for layer in (*self.resnets, *getattr(self, "downsamplers", ())):
            x = layer(x)
        return x


class DecoderBlock(nn.Module):
    """Resnets, then doubling of the resolution except in the last block."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels if i == 0 else out_channels, out_channels, None, groups, _EPS)
            for i in range(layers)
        )
        if not last:
            self.upsamplers = nn.ModuleList([Upsample2D(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W), or (B, C_out, H, W) in the last block."""
        for layer in (*self.resnets, *getattr(self, "upsamplers", ())):
            x = layer(x)
        return x


class Encoder(GradientCheckpointing):
    """Picture (B, in_channels, H, W) in [-1, 1] -> mean and log-variance (B, 2 * latent_channels, H/f, W/f)."""

    def __init__(
        self, in_channels: int, latent_channels: int, channels: Sequence[int], layers: int, groups: int, attention: bool
    ) -> None:
        super().__init__()
        self.conv_in = Conv2d(in_channels, channels[0])
        ins = [channels[0], *channels[:-1]]
        self.down_blocks = nn.ModuleList(
            EncoderBlock(c_in, c_out, layers, groups, last=i == len(channels) - 1)
            for i, (c_in, c_out) in enumerate(zip(ins, channels, strict=True))
        )
        self.mid_block = UNetMidBlock2D(channels[-1], groups, attention=attention)
        self.conv_norm_out = GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = Conv2d(channels[-1], 2 * latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = self.layer(block, h)
        h = self.mid_block(h)
        return self.conv_out(silu(self.conv_norm_out(h), self.conv_norm_out))


class Decoder(GradientCheckpointing):
    """Latents (B, latent_channels, h, w) -> picture (B, out_channels, f*h, f*w)."""

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        channels: Sequence[int],
        layers: int,
        groups: int,
        attention: bool,
    ) -> None:
        super().__init__()
        channels = list(reversed(channels))
        self.conv_in = Conv2d(latent_channels, channels[0])
        self.mid_block = UNetMidBlock2D(channels[0], groups, attention=attention)
        ins = [channels[0], *channels[:-1]]
        self.up_blocks = nn.ModuleList(
            DecoderBlock(c_in, c_out, layers + 1, groups, last=i == len(channels) - 1)
            for i, (c_in, c_out) in enumerate(zip(ins, channels, strict=True))
        )
        self.conv_norm_out = GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = Conv2d(channels[-1], out_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = self.layer(block, h)
        return self.conv_out(silu(self.conv_norm_out(h), self.conv_norm_out))
