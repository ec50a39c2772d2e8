"""3x3 convolutions in a quarter of the products: Winograd's F(4x4, 3x3) (Lavin & Gray 2016) as matrix products.

A tile of 4x4 outputs reads 6x6 inputs. Both are transformed so that the 36 positions become 36 matrix products over
channels, which is where a CPU is fastest. The interpolation points are 0, +-3/4, +-3/2 and infinity instead of the
usual 0, +-1, +-2: with them the float32 error is that of a direct convolution (Barabasz et al. 2020 show how much
points matter). Work is done on a few rows of tiles at a time, so that what is in between stays in the cache, and the
weights are transformed when they are used: nothing is kept, and whoever changes a weight need tell nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.repeats import are_repeating, made_once
from ..core.shapes import alike, traced_once
from ..device.capabilities import widened

OUT, IN = 4, 6
"""Outputs of a tile along one side, and the inputs that they read."""

MOST_TILES, FEWEST_TILES, TILES_BYTES = 256, 64, 16 << 20
"""Tiles at a time: their transforms stay in a CPU's cache, and the matrices are still large."""

PART_BYTES = 16 << 20
"""Transformed weights, which are four times the plain ones, are made and used in parts of so many bytes."""

KEPT_BYTES = 64 << 20
"""Transformed weights kept for the next tiles of the same picture. A layer with more makes them again."""

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
    number = IN * IN * widened(x.dtype).itemsize  # bytes of a transformed one
    step = max(PART_BYTES // (number * C), 1)
    parts = [slice(c, c + step) for c in range(0, channels, step)]
    fitting = TILES_BYTES // (number * (C + min(step, channels)))
    at_once = min(max(fitting, FEWEST_TILES), MOST_TILES)
    single = B * h * w <= at_once  # so that each weight is used once
    keep = not single and not repeats and number * C * channels <= KEPT_BYTES
    shared = repeats and number * C * B * h * w <= KEPT_BYTES
    at_once = at_once if single or keep else MOST_TILES
    pictures, rows = (max(at_once // (h * w), 1), h) if h * w <= at_once else (1, max(at_once // w, 1))
    weights = [fold(weight[part]) if keep else weight[part] for part in parts]
    for b in alike(range(0, B, pictures)):
        for r in alike(range(0, h, rows)):
            n = min(rows, h - r)
            window = OUT * r - 1, OUT * n + 2, OUT * w + 2
            slab = partial(_slab, pixels[b : b + pictures], *window, double=double)
            tiles = made_once(f"tiles {b} {r}", lambda: transform(slab())) if shared else transform(slab())  # noqa: B023
            strip = out[b : b + pictures, OUT * r : OUT * (r + n)]
            _fill([strip[..., part] for part in parts], tiles, weights, bias)
            del tiles  # before those of the next rows are made
    return out.permute(0, 3, 1, 2)


_convolve_once = traced_once(_convolve)


def _fill(places: Sequence[Tensor], v: Tensor, weights: Sequence[Tensor], bias: Tensor | None) -> None:
    """Outputs (B, <= 4n, <= 4w, some channels), part by part, of tiles (6, 6, B, n, w, C) and weights, which are
    transformed here if they are not."""
    biases = [None] * len(places) if bias is None else bias.split([place.shape[-1] for place in places])
    for place, weight, shift in alike(list(zip(places, weights, biases, strict=True))):
        _fill_part(place, v, fold(weight) if weight.dim() == 4 else weight, shift)


def _fill_part(place: Tensor, v: Tensor, u: Tensor, bias: Tensor | None) -> None:
    tiles = torch.bmm(v.flatten(0, 1).flatten(1, 3), u.transpose(1, 2))
    y = gather(tiles.view(IN, IN, *v.shape[2:5], -1))
    torch.add(y[:, : place.shape[1], : place.shape[2]], 0 if bias is None else bias, out=place)


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


@traced_once
def transform(slab: Tensor) -> Tensor:
    """Inputs (B, 4n + 2, 4w + 2, C) -> transformed tiles (6, 6, B, n, w, C): B^T d B."""
    B, height, width, C = slab.shape
    n, w = height // OUT, width // OUT
    rows = slab.new_empty(IN, B, n, width, C)
    _inputs([slab[:, i : i + OUT * n - 3 : OUT] for i in range(IN)], rows.unbind())
    tiles = slab.new_empty(IN, IN, B, n, w, C)
    _inputs([rows[:, :, :, i : i + OUT * w - 3 : OUT] for i in range(IN)], tiles.unbind(1))
    return tiles


@traced_once
def gather(tiles: Tensor) -> Tensor:
    """Products (6, 6, B, n, w, C) -> outputs (B, 4n, 4w, C): A^T m A."""
    _, _, B, n, w, C = tiles.shape
    rows = tiles.new_empty(OUT, IN, B, n, w, C)
    _outputs(tiles.unbind(), rows.unbind())
    y = tiles.new_empty(B, n, OUT, w, OUT, C)
    _outputs(rows.unbind(1), [y[:, :, :, :, j].permute(2, 0, 1, 3, 4) for j in range(OUT)])
    return y.view(B, OUT * n, OUT * w, C)


@traced_once
def fold(weight: Tensor) -> Tensor:
    """Weights (C_out, C, 3, 3) -> transformed ones (36, C_out, C): G g G^T."""
    weight = weight.to(widened(weight.dtype))
    return torch.matmul(weight.new_tensor(_FOLD), weight.flatten(2).transpose(1, 2)).transpose(0, 1)


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


def _fold_matrix() -> list[list[float]]:
    """G along both sides at once, 36 x 9: the weights' polynomial at each point, over the product of the distances to
    the other points. Infinity takes the last weight."""
    G = [[1 / (_A2 * _B2), 0.0, 0.0]]
    for p, q2 in ((_A, _B2), (-_A, _B2), (_B, _A2), (-_B, _A2)):
        scale = abs(p) / (2 * p * p * (p * p - q2))
        G.append([scale, scale * p, scale * p * p])
    G.append([0.0, 0.0, 1.0])
    return [[above * left for above in row for left in column] for row in G for column in G]


_FOLD = _fold_matrix()
