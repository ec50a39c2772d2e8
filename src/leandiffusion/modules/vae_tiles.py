"""The VAE in strips of rows, exactly: the result is that of the whole feature maps.

Strips are computed on demand: a `Rows` knows its shape and computes requested rows from rows of its inputs. A
convolution requests the rows it reads beyond a strip's border; a group norm is given the statistics of the whole
feature map, gathered in a pass of their own; the middle of the network, with its attention, works on the whole latent,
where feature maps are small. Nothing is blended, so there are no seams and no shifts of colour.

Weights are reached only by calling the layer that holds them, since offloading may bring them only then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.malloc import trim
from ..core.shapes import alike
from ..device.host import is_host
from .blocks import GroupNorm, ResnetBlock2D, Statistics, silu

if TYPE_CHECKING:
    from .vae_blocks import Decoder, Encoder

STRIP_BYTES = 8 << 20
"""Of one strip of a feature map, unless the user chooses the rows. A few such strips are in memory at once."""

MIN_ROWS = 8


def check_tile_rows(rows: Any) -> None:
    """ConfigError unless `rows` is None or a whole number of the picture's rows from 8 up."""
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < MIN_ROWS):
        raise ConfigError(
            f"rows={rows!r}: a strip is a whole number of rows of the picture, {MIN_ROWS} or more, or None to choose "
            "them by the size."
        )


class Rows(Protocol):
    """A feature map (B, C, H, W) whose rows are computed on request. The result must not be modified."""

    @property
    def shape(self) -> tuple[int, int, int, int]: ...

    @property
    def width(self) -> int:
        """Elements per row, of one picture, of the widest feature map computed on the way to it."""
        ...

    def rows(self, begin: int, end: int) -> Tensor:
        """(B, C, end - begin, W)."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """A feature map in memory."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        B, C, H, W = self.tensor.shape
        return B, C, H, W

    @property
    def width(self) -> int:
        return _row(self)

    def rows(self, begin: int, end: int) -> Tensor:
        return self.tensor[:, :, begin:end]


@dataclass(frozen=True, eq=False)
class Convolved:
    """A convolution of stride 1 that keeps the size: its padding is the picture's border, never a strip's."""

    source: Rows
    conv: nn.Conv2d

    @property
    def shape(self) -> tuple[int, int, int, int]:
        B, _, H, W = self.source.shape
        return B, self.conv.out_channels, H, W

    @property
    def width(self) -> int:
        return max(_row(self), self.source.width)

    def rows(self, begin: int, end: int) -> Tensor:
        halo = self.conv.kernel_size[0] // 2
        first, last = max(begin - halo, 0), min(end + halo, self.shape[2])
        out = self.conv(self.source.rows(first, last))  # its zero rows spoil the halo's rows, which are cut off
        return out[:, :, begin - first : end - first]


@dataclass(frozen=True, eq=False)
class Normalised:
    """Group norm by the whole feature map's statistics, then SiLU."""

    source: Rows
    norm: GroupNorm
    statistics: Statistics

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.source.shape

    @property
    def width(self) -> int:
        return self.source.width

    def rows(self, begin: int, end: int) -> Tensor:
        return silu(self.norm(self.source.rows(begin, end), self.statistics), self.norm)


@dataclass(frozen=True, eq=False)
class Doubled:
    """Nearest-neighbour enlargement."""

    source: Rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        B, C, H, W = self.source.shape
        return B, C, 2 * H, 2 * W

    @property
    def width(self) -> int:
        return max(_row(self), self.source.width // 2)

    def rows(self, begin: int, end: int) -> Tensor:
        first = begin // 2
        large = F.interpolate(self.source.rows(first, (end + 1) // 2), scale_factor=2.0, mode="nearest")
        return large[:, :, begin - 2 * first : end - 2 * first]


@dataclass(frozen=True, eq=False)
class Halved:
    """The encoder's convolution of stride 2, padded on the right and below."""

    source: Rows
    conv: nn.Conv2d

    @property
    def shape(self) -> tuple[int, int, int, int]:
        B, _, H, W = self.source.shape
        return B, self.conv.out_channels, (H - 2) // 2 + 1, (W - 2) // 2 + 1

    @property
    def width(self) -> int:
        return max(_row(self), 2 * self.source.width)

    def rows(self, begin: int, end: int) -> Tensor:
        last = min(2 * end + 1, self.source.shape[2])
        return self.conv(F.pad(self.source.rows(2 * begin, last), (0, 1, 0, 2 * end + 1 - last)))


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of two feature maps of one shape."""

    one: Rows
    other: Rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.one.shape

    @property
    def width(self) -> int:
        return max(self.one.width, self.other.width)

    def rows(self, begin: int, end: int) -> Tensor:
        return self.one.rows(begin, end) + self.other.rows(begin, end)


@dataclass(frozen=True)
class Tiler:
    """Computes feature maps in strips of a `share` of their rows, None for STRIP_BYTES; `itemsize` in bytes."""

    share: float | None
    itemsize: int

    def strips(self, source: Rows) -> list[tuple[int, int]]:
        """[begin, end) of each strip, from the top."""
        B, _, H, _ = source.shape
        if self.share is None:
            step = max(STRIP_BYTES // (B * source.width * self.itemsize), MIN_ROWS)
        else:
            step = max(round(self.share * H), 1)
        return [(begin, min(begin + step, H)) for begin in range(0, H, step)]

    def compute(self, source: Rows, into: Tensor | None = None) -> Tensor:
        """The whole feature map. `into` may be a tensor that the source reads with a halo of one row: a strip is
        written when the one below it has been computed."""
        held: tuple[int, int, Tensor] | None = None
        for begin, end in alike(self.strips(source)):
            strip = source.rows(begin, end)
            if into is None:
                if is_host(strip.device):
                    trim()  # what strips of other maps left, which can be as much as this one
                into = _like(strip, source.shape)
            if held is not None:
                into[:, :, held[0] : held[1]] = held[2]
            held = (begin, end, strip)
        assert held is not None
        assert into is not None
        into[:, :, held[0] : held[1]] = held[2]
        return into

    def statistics(self, source: Rows, groups: int) -> Statistics:
        """Mean and variance of each group of channels over the feature map, combined by strips (Chan et al. 1979). By
        sums over channels, which torch adds up twenty times as fast as `torch.var_mean` has both."""
        count, mean, total = 0, torch.zeros(()), torch.zeros(())  # total: sum of squared deviations
        for begin, end in alike(self.strips(source)):
            x = source.rows(begin, end).float()
            B, C, h, W = x.shape
            n = C // groups * h * W
            mean_ = x.mean(dim=(2, 3)).view(B, groups, -1).mean(dim=-1)
            x = x - mean_.repeat_interleave(C // groups, dim=1)[:, :, None, None]
            total_ = x.square_().sum(dim=(2, 3)).view(B, groups, -1).sum(dim=-1).double()
            mean_ = mean_.double()
            if not count:
                mean, total = mean_, total_
            else:
                delta = mean_ - mean
                mean = mean + delta * (n / (count + n))
                total = total + total_ + delta.square() * (count * n / (count + n))
            count += n
        return Statistics(mean.float(), (total / count).float())

    def resnet(self, x: Rows, block: ResnetBlock2D) -> InMemory:
        """A resnet block without timestep. Its second half overwrites its first, so two feature maps are in memory."""
        norm1 = Normalised(x, block.norm1, self.statistics(x, block.norm1.num_groups))
        h = self.compute(Convolved(norm1, block.conv1))
        norm2 = Normalised(InMemory(h), block.norm2, self.statistics(InMemory(h), block.norm2.num_groups))
        skip = x if block.conv_shortcut is None else Convolved(x, block.conv_shortcut)
        return InMemory(self.compute(Sum(Convolved(norm2, block.conv2), skip), into=h))


@torch.no_grad()
def decode_tiled(decoder: Decoder, z: Tensor, rows: int | None) -> Tensor:
    """What `decoder(z)` gives, in strips of so many rows of the picture. Without gradients.

    In memory are at most two feature maps of the last level's width, and a few strips.
    """
    x: Rows = InMemory(decoder.mid_block(decoder.conv_in(z)))
    scale = 2 ** sum(len(_parts(block, "upsamplers")) for block in decoder.up_blocks)
    tiler = Tiler(None if rows is None else rows / (scale * z.shape[2]), z.element_size())
    last = decoder.conv_norm_out.num_channels * z.shape[0] * z.shape[2] * z.shape[3] * scale**2
    for block in decoder.up_blocks:
        for resnet in _parts(block, "resnets"):
            x = tiler.resnet(x, resnet)
        for upsampler in _parts(block, "upsamplers"):
            x = Convolved(Doubled(x), upsampler.conv)
            # Wide and at full size it would be the largest map of all. It is computed again where it is read, unless
            # it fits, together with what is made of it, beneath the two maps that are needed in any case.
            if _numbers(x) <= last:
                x = InMemory(tiler.compute(x))
    norm = Normalised(x, decoder.conv_norm_out, tiler.statistics(x, decoder.conv_norm_out.num_groups))
    return tiler.compute(Convolved(norm, decoder.conv_out))


@torch.no_grad()
def encode_tiled(encoder: Encoder, x: Tensor, rows: int | None) -> Tensor:
    """What `encoder(x)` gives, in strips of so many rows of the picture. Without gradients."""
    tiler = Tiler(None if rows is None else rows / x.shape[2], x.element_size())
    h = InMemory(tiler.compute(Convolved(InMemory(x), encoder.conv_in)))
    for block in encoder.down_blocks:
        for resnet in _parts(block, "resnets"):
            h = tiler.resnet(h, resnet)
        for downsampler in _parts(block, "downsamplers"):
            h = InMemory(tiler.compute(Halved(h, downsampler.conv)))
    return encoder.conv_out(silu(encoder.conv_norm_out(encoder.mid_block(h.tensor)), encoder.conv_norm_out))


def _parts(block: nn.Module, name: str) -> list[Any]:
    """The layers of one kind in a level; none where it has no such."""
    return list(getattr(block, name, ()))


def _numbers(source: Rows) -> int:
    B, C, H, W = source.shape
    return B * C * H * W


def _row(source: Rows) -> int:
    return source.shape[1] * source.shape[3]


def _like(strip: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A buffer for a whole feature map, in the memory format of its strips."""
    last = strip.is_contiguous(memory_format=torch.channels_last) and not strip.is_contiguous()
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=form)
