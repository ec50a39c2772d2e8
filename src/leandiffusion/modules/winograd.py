"""3x3 convolutions in a quarter of the products: Winograd's F(4x4, 3x3) (Lavin & Gray 2016) as matrix products.

A tile of 4x4 outputs reads 6x6 inputs. Both are transformed so that the 36 positions become 36 matrix products over
channels, which is where a CPU is fastest. The interpolation points are 0, +-3/4, +-3/2 and infinity instead of the
usual 0, +-1, +-2: with them the float32 error is that of a direct convolution (Barabasz et al. 2020 show how much
points matter). Work is done on a few rows of tiles at a time, so that what is in between stays in the cache, and in
room that the next ones use again, since memory that the system gives anew takes longer than the transforms. Weights are
transformed when they are used: nothing is kept, and whoever changes a weight need tell nobody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.repeats import are_repeating, made_once
from ..core.shapes import alike, traced_once
from ..device.capabilities import widened
from .linear import is_for_onednn

OUT, IN = 4, 6
"""Outputs of a tile along one side, and the inputs that they read."""

VECTOR = 32
"""Outputs that kernels of products compute side by side, or a multiple of them."""

TILES_BYTES, FEWEST_TILES, MOST_TILES = 24 << 20, 64, 1024
"""Tiles at a time: so many bytes of them transformed and of their products, in a CPU's outer cache, and matrices that
are still large."""

TILES_AGAIN = 256
"""Tiles at a time where weights are transformed anew for each."""

PART_BYTES = 16 << 20
"""Weights transformed along one side, which are twice the plain ones, are made and used in parts of so many bytes."""

KEPT_BYTES = 32 << 20
"""Such weights kept for the next tiles of the same picture. A layer with more makes them again."""

SHARED_BYTES = 64 << 20
"""Transformed tiles kept for calls that repeat."""

STRIP_BYTES = 2 << 20
"""What is on its way between two transforms: it stays in a core's cache, and is no block that the system gives anew."""

_A, _B = 3 / 4, 3 / 2
_A2, _B2 = _A * _A, _B * _B


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, double: bool = False) -> Tensor:
    """Convolution of stride 1, padding 1: x (B, C, H, W), weight (C_out, C, 3, 3) -> (B, C_out, H, W), channels-last.

    Half precision is made float32 tile by tile. With `double`, of x enlarged to (2H, 2W) by nearest neighbour, which is
    never in memory as a whole. Calls that repeat for other outputs (`core.repeats`) share the tiles, unless these take
    more than what would be kept of weights.
    """
    if are_repeating():  # what they share belongs to the first of them alone
        return _convolve(x, weight, bias, double=double, repeats=True)
    return _convolve_once(x, weight, bias, double=double, repeats=False)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, double: bool, repeats: bool) -> Tensor:
    channels = weight.shape[0]
    pixels = x.permute(0, 2, 3, 1)
    B, H, W, C = pixels.shape
    H, W = (2 * H, 2 * W) if double else (H, W)
    h, w = -(-H // OUT), -(-W // OUT)
    out = x.new_empty(B, H, W, channels)
    size = widened(x.dtype).itemsize
    tile, half = IN * IN * size, 3 * IN * size  # bytes of a tile's numbers, and of half-transformed weights'
    parts = _parts(channels, half * C)
    step = parts[0].stop
    at_once = min(max(TILES_BYTES // (tile * (C + step)), FEWEST_TILES), MOST_TILES)
    single = B * h * w <= at_once  # so that each weight is used once
    keep = not single and not repeats and half * C * channels <= KEPT_BYTES
    shared = repeats and tile * C * B * h * w <= SHARED_BYTES
    at_once = at_once if single or keep else max(at_once, TILES_AGAIN)
    pictures, rows = (min(max(at_once // (h * w), 1), B), h) if h * w <= at_once else (1, max(at_once // w, 1))
    most = pictures * rows * w
    room = x.new_empty(OUT * IN * most * step, dtype=widened(x.dtype))
    place = None if shared else room.new_empty(IN * IN * most * C)
    weights = [fold(weight[part]) if keep else weight[part] for part in parts]
    for b in alike(range(0, B, pictures)):
        some = pixels[b : b + pictures]
        for r in alike(range(0, h, rows)):
            n = min(rows, h - r)
            make = partial(transform, some, (r, n, w), place, double=double)
            tiles = made_once(f"tiles {b} {r}", make) if shared else make()
            strip = out[b : b + pictures, OUT * r : OUT * (r + n)]
            _fill([strip[..., part] for part in parts], tiles, weights, bias, room, folded=keep)
            del tiles, make  # before those of the next rows are made
    return out.permute(0, 3, 1, 2)


_convolve_once = traced_once(_convolve)


def _parts(channels: int, nbytes: int) -> list[slice]:
    """Outputs in parts of about the same size: PART_BYTES, where each takes `nbytes`, or vectors of them if that is
    less."""
    count = -(-channels * nbytes // PART_BYTES)
    step = min(-(-channels // (count * VECTOR)) * VECTOR, channels)
    return [slice(c, min(c + step, channels)) for c in range(0, channels, step)]


def _strips(count: int, nbytes: int) -> list[slice]:
    """So many, each of `nbytes`, in strips of STRIP_BYTES."""
    step = max(STRIP_BYTES // nbytes, 1)
    return [slice(c, min(c + step, count)) for c in range(0, count, step)]


def _fill(
    places: Sequence[Tensor], v: Tensor, weights: Sequence[Tensor], bias: Tensor | None, room: Tensor, *, folded: bool
) -> None:
    """Outputs (B, <= 4n, <= 4w, some channels), part by part, of tiles (6, 6, B, n, w, C) and weights, `folded` or not.
    Products are in `room` on their way."""
    biases = [None] * len(places) if bias is None else bias.split([place.shape[-1] for place in places])
    for place, weight, shift in alike(list(zip(places, weights, biases, strict=True))):
        _fill_part(place, v, weight if folded else fold(weight), shift, room)


@traced_once
def _fill_part(place: Tensor, v: Tensor, half: Tensor, bias: Tensor | None, room: Tensor) -> None:
    outs = half.shape[-2]
    rows = room[: OUT * IN * v[0, 0, ..., 0].numel() * outs].view(IN, OUT, *v.shape[2:5], outs)
    for i in alike(range(IN)):
        _outputs(_multiply(v[i].flatten(1, 3), half[i]), rows[i].flatten(1, 3).unbind())
    _gather(rows, place, bias)


def _multiply(v: Tensor, half: Tensor) -> Sequence[Tensor]:
    """Six positions of tiles (6, T, C) with weights transformed along one side (3, outs, C) -> six of (T, outs)."""
    u = _folded(half)
    if not is_for_onednn(v, u):
        return torch.bmm(v, u.transpose(1, 2)).unbind()
    return [torch.ops.mkldnn._linear_pointwise(some, by, None, "none", [], "") for some, by in zip(v, u, strict=True)]


def tiles_of(shape: Sequence[int], *, double: bool = False) -> int:
    """Tiles of 4x4 outputs for inputs of that shape (B, C, H, W)."""
    B, _, H, W = shape
    scale = 2 if double else 1
    return B * -(-scale * H // OUT) * -(-scale * W // OUT)


def _slab(pixels: Tensor, first: int, height: int, width: int, *, double: bool) -> Tensor:
    """Rows `first` to `first + height` of pixels (B, H, W, C) with a pixel of zeros around: (B, height, width, C)."""
    B, H, W, C = pixels.shape
    scale = 2 if double else 1
    begin, end = max(first, 0), min(first + height, scale * H)
    inside = pixels[:, begin // scale : -(-end // scale)]
    slab = pixels.new_zeros(B, height, width, C, dtype=widened(pixels.dtype))
    place = slab[:, begin - first : end - first, 1 : scale * W + 1]
    if double:
        large = F.interpolate(inside.permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest").permute(0, 2, 3, 1)
        inside = large[:, begin % 2 : begin % 2 + end - begin]
    place.copy_(inside)
    return slab


def transform(pixels: Tensor, rows: tuple[int, int, int], place: Tensor | None, *, double: bool) -> Tensor:
    """Pixels (B, H, W, C) -> transformed tiles (6, 6, B, n, w, C): B^T d B, of `rows`: the first one, n, and w, the
    tiles in each. They are in `place` if there is one."""
    B, _, _, C = pixels.shape
    first, n, w = rows
    shape, dtype = (IN, IN, B, n, w, C), widened(pixels.dtype)
    tiles = pixels.new_empty(shape, dtype=dtype) if place is None else place[: math.prod(shape)].view(shape)
    _transform(pixels, first, tiles, double=double)
    return tiles


@traced_once
def _transform(pixels: Tensor, first: int, tiles: Tensor, *, double: bool) -> None:
    """Into tiles (6, 6, B, n, w, C), whose rows begin with `first`."""
    _, _, B, n, w, C = tiles.shape
    width = OUT * w + 2
    for some in alike(_strips(n, IN * B * width * C * tiles.itemsize)):
        height = OUT * (some.stop - some.start)
        slab = _slab(pixels, OUT * (first + some.start) - 1, height + 2, width, double=double)
        columns = slab.new_empty(IN, B, height // OUT, width, C)
        _inputs([slab[:, i : i + height - 3 : OUT] for i in range(IN)], columns.unbind())
        _inputs([columns[:, :, :, i : i + OUT * w - 3 : OUT] for i in range(IN)], tiles[:, :, :, some].unbind(1))


def _gather(rows: Tensor, place: Tensor, bias: Tensor | None) -> None:
    """Products that were transformed along one side (6, 4, B, n, w, C) -> outputs (B, <= 4n, <= 4w, C)."""
    _, _, B, n, w, C = rows.shape
    for some in alike(_strips(n, OUT * OUT * B * w * C * rows.itemsize)):
        strip = place[:, OUT * some.start : OUT * some.stop]
        y = _gathered(rows[:, :, :, some])[:, : strip.shape[1], : strip.shape[2]]
        torch.add(y, 0 if bias is None else bias, out=strip)


@traced_once
def _gathered(rows: Tensor) -> Tensor:
    """(6, 4, B, n, w, C) -> (B, 4n, 4w, C): A^T m."""
    _, _, B, n, w, C = rows.shape
    y = rows.new_empty(B, n, OUT, w, OUT, C)
    _outputs(rows.unbind(), [y[:, :, i].permute(3, 0, 1, 2, 4) for i in range(OUT)])
    return y.view(B, OUT * n, OUT * w, C)


@traced_once
def fold(weight: Tensor) -> Tensor:
    """Weights (C_out, C, 3, 3) -> transformed along one side (6, 3, C_out, C): G g."""
    outs, C = weight.shape[:2]
    half = weight.new_empty(IN, 3, outs, C, dtype=widened(weight.dtype))
    for some in alike(_strips(outs, 9 * C * half.itemsize)):
        g = half.new_empty(3, 3, some.stop - some.start, C)
        g.copy_(weight[some].permute(2, 3, 0, 1))
        _weights(g, half[:, :, some])
    return half


@traced_once
def _folded(half: Tensor) -> Tensor:
    """Weights transformed along one side (3, C_out, C) -> along both (6, C_out, C): (G g) G^T."""
    u = half.new_empty(IN, *half.shape[1:])
    _weights(half, u)
    return u


def _inputs(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """B^T: six inputs -> their products at the points 0, a, -a, b, -b and infinity."""
    for p, q2, plus, minus in ((_A, _B2, out[1], out[2]), (_B, _A2, out[3], out[4])):
        even, odd = torch.sub(d[4], d[2], alpha=q2), torch.sub(d[3], d[1], alpha=q2)
        torch.add(even, odd, alpha=p, out=plus)
        torch.sub(even, odd, alpha=p, out=minus)
    for i, end in ((0, out[0]), (1, out[5])):
        torch.sub(d[4 + i], d[2 + i], alpha=_A2 + _B2, out=end).add_(d[i], alpha=_A2 * _B2)


def _outputs(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """A^T: six products -> four outputs. Those at +-p carry a factor p, which the weights took."""
    sum_a, diff_a, sum_b, diff_b = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    torch.add(m[0], sum_a, alpha=1 / _A, out=out[0]).add_(sum_b, alpha=1 / _B)
    torch.add(diff_a, diff_b, out=out[1])
    torch.add(sum_a.mul_(_A), sum_b, alpha=_B, out=out[2])
    torch.add(m[5], diff_a, alpha=_A2, out=out[3]).add_(diff_b, alpha=_B2)


def _weights(g: Sequence[Tensor] | Tensor, out: Sequence[Tensor] | Tensor) -> None:
    """G: three weights -> their polynomial at each point, over the product of the distances to the other points, and
    the last for infinity."""
    torch.mul(g[0], 1 / (_A2 * _B2), out=out[0])
    for p, q2, plus, minus in ((_A, _B2, out[1], out[2]), (_B, _A2, out[3], out[4])):
        scale = 1 / (2 * p * (p * p - q2))
        even = torch.mul(g[0], scale).add_(g[2], alpha=scale * p * p)
        torch.add(even, g[1], alpha=scale * p, out=plus)
        torch.sub(even, g[1], alpha=scale * p, out=minus)
    out[5].copy_(g[2])
