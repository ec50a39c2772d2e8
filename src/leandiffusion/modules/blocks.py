"""Convolutional parts shared by the UNet and the VAE: resnet block, up- and downsampling, timestep embedding.

Parameter names are those of diffusers checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.shapes import is_channels_last
from ..device.host import is_host
from ..weights.stored import plain
from .convolution import Conv2d
from .linear import Linear


def refuse_unsupported(owner: object, supported: Mapping[str, tuple[Any, ...]], config: Mapping[str, Any]) -> None:
    """ConfigError for a config key whose value asks for something that `owner` does not build."""
    for key, values in supported.items():
        if config[key] not in values:
            raise ConfigError(
                f"{type(owner).__name__} does not support {key}={config[key]!r}: "
                f"only {' or '.join(repr(value) for value in values)}."
            )


def sinusoid(timesteps: Tensor, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Tensor:
    """Sinusoidal position embedding of Vaswani et al. 2017 as Ho et al. 2020 use it: (B,) -> (B, dim) float32."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - freq_shift)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * exponents)[None]
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    embedding = torch.cat(parts, dim=-1)
    return F.pad(embedding, (0, dim % 2))


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and variance (B, groups) of a feature map's groups of channels, in float32."""

    mean: Tensor
    var: Tensor


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) that can be given the statistics of a feature map of which it sees a part."""

    def forward(self, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        """(B, C, H, W) -> the same shape; `statistics` are of x itself unless given."""
        if statistics is None and x.is_meta and is_host(x.device):  # torch would take another layout than on a CPU
            form = torch.channels_last if is_channels_last(x) else torch.contiguous_format
            B, C, H, W = x.shape
            settings = B, C, H * W, self.num_groups, self.eps
            return torch.native_group_norm(x.contiguous(memory_format=form), self.weight, self.bias, *settings)[0]
        if statistics is None:
            return super().forward(x)
        per_group = self.num_channels // self.num_groups
        mean, var = (t.repeat_interleave(per_group, dim=1) for t in (statistics.mean, statistics.var))
        scale = plain(self.weight).float() * torch.rsqrt(var + self.eps)
        shift = plain(self.bias).float() - mean * scale
        return torch.addcmul(shift[:, :, None, None], x.float(), scale[:, :, None, None]).to(x.dtype)


class TimestepEmbedding(nn.Module):
    """Two-layer MLP on the sinusoid, optionally with a guidance embedding added first (Meng et al. 2023)."""

    def __init__(self, in_channels: int, out_channels: int, cond_dim: int | None = None) -> None:
        super().__init__()
        self.linear_1 = Linear(in_channels, out_channels)
        self.cond_proj = Linear(cond_dim, in_channels, bias=False) if cond_dim is not None else None
        self.linear_2 = Linear(out_channels, out_channels)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, in_channels), (B, cond_dim) or None -> (B, out_channels)."""
        if condition is not None and self.cond_proj is not None:
            sample = sample + self.cond_proj(condition)
        return self.linear_2(F.silu(self.linear_1(sample)))


def in_place_allowed() -> bool:
    """Whether layers may work in place at all: not while gradients are recorded, nor while tracing, whose check runs in
    another mode."""
    return not (torch.is_grad_enabled() or torch.jit.is_tracing())  # type: ignore[reportPrivateImportUsage]


def may_overwrite(maker: nn.Module) -> bool:
    """Whether the output of the layer `maker` may be changed in place: not where a forward hook may have kept it."""
    return in_place_allowed() and not (maker._forward_hooks or nn.modules.module._global_forward_hooks)


def is_untouched(layer: nn.Module) -> bool:
    """Whether a layer runs just its class's forward: no hook and no compiler sees it called. Offloading does, which
    changes only where weights are, and says so by `only_moves`."""
    own = vars(layer).get("forward")
    replaced = own is not None and not getattr(own, "only_moves", False)
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._compiled_call_impl
    shared = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    return not (hooked or shared or replaced or torch.compiler.is_compiling())


class GradientCheckpointing(nn.Module):
    """Gradient checkpointing: keeps only layers' inputs, and computes layers again for gradients (Chen et al. 2016)."""

    gradient_checkpointing: bool = False
    checkpoint: Callable[..., Any] | None = None
    """Runs a layer that is checkpointed: checkpoint(layer, *inputs); torch's own unless set."""

    def layer(self, layer: nn.Module, *inputs: Any) -> Any:
        """layer(*inputs), checkpointed where that is on and gradients are recorded."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return layer(*inputs)
        if self.checkpoint is not None:
            return self.checkpoint(layer, *inputs)
        return torch.utils.checkpoint.checkpoint(layer, *inputs, use_reentrant=False)


def silu(x: Tensor, maker: nn.Module) -> Tensor:
    """SiLU of x, the output of the layer `maker`, in place where allowed."""
    return F.silu(x, inplace=may_overwrite(maker))


def add(x: Tensor, y: Tensor, maker: nn.Module) -> Tensor:
    """x + y, in place where allowed; x is the output of the layer `maker`."""
    return x.add_(y) if may_overwrite(maker) else x + y


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """x (B, ...) -> (rows, ...), the whole batch again and again; a view where B is 1. `rows` is a multiple of B."""
    if len(x) == rows:
        return x
    return x.expand(rows, *x.shape[1:]) if len(x) == 1 else x.repeat(rows // len(x), *[1] * (x.dim() - 1))


class ResnetBlock2D(nn.Module):
    """norm-silu-conv twice around a shortcut; the timestep embedding is added between (Ho et al. 2020, app. B)."""

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = Conv2d(in_channels, out_channels)
        self.time_emb_proj = Linear(temb_channels, out_channels) if temb_channels is not None else None
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = Conv2d(out_channels, out_channels)
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1, padding=0) if in_channels != out_channels else None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """x (B, C_in, H, W), temb (B, temb_channels) or fewer rows, after SiLU -> (B, C_out, H, W)."""
        h = self.conv1(silu(self.norm1(x), self.norm1))
        if self.time_emb_proj is not None and temb is not None:
            h = add(h, repeat_rows(self.time_emb_proj(temb), len(h))[:, :, None, None], self.conv1)
        h = silu(self.norm2(h), self.norm2)  # by itself, so that what it was made of is freed before the convolution
        h = self.conv2(h)
        return add(h, x if self.conv_shortcut is None else self.conv_shortcut(x), self.conv2)


class Downsample2D(nn.Module):
    """3x3 convolution of stride 2. The VAE pads only right and below (`padding=0`), the UNet on all sides."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = Conv2d(channels, channels, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2)); rounded down when padding is 0."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample2D(nn.Module):
    """Nearest-neighbour enlargement, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or (B, C, *size) to fit a skip connection of odd size."""
        if size is None and isinstance(self.conv, Conv2d):
            return self.conv(x, double=True)
        if size is None:
            size = 2 * x.shape[-2], 2 * x.shape[-1]
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
