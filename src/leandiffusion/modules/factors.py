"""Changes of a weight as sums and products of small factors: LoRA, LoHa and LoKr.

"LoRA", Hu et al. 2021, section 4.1; "FedPara" for the Hadamard product (LoHa), Hyeon-Woo et al. 2022, sections 2.1 and
2.2; "Navigating Text-To-Image Customization" (LyCORIS), Yeh et al. 2024, section 3 and appendix B, for Kronecker
products (LoKr) and for convolutions.

Letters in shapes: r rank; out, ins channels of the layer; k the side of its kernel, absent in linear layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.shapes import is_channels_last
from .blocks import in_place_allowed

Factors = Mapping[str, Tensor]
"""The factors of one change by name."""

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Kind(ABC):
    """How factors make up the change of a weight: their names, and the change."""

    first: ClassVar[tuple[str, ...]]
    """Names of factors, one of which every change of this kind has."""

    names: ClassVar[tuple[str, ...]]
    """Names of all factors that there may be."""

    @abstractmethod
    def rank(self, shapes: Mapping[str, Shape]) -> int | None:
        """What `alpha` is divided by for the scale; None where nothing is of low rank, and the scale is 1."""

    @abstractmethod
    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Shape of the change; KeyError, IndexError or ValueError for factors of these shapes that make up none."""

    @abstractmethod
    def delta(self, factors: Factors) -> Tensor:
        """The change for a scale of 1: (out, ins) or (out, ins, k, k), in some shape of as many elements."""

    def add(self, y: Tensor, x: Tensor, layer: nn.Linear | nn.Conv2d, factors: Factors, scale: float) -> Tensor:
        """y, the layer's output for x, plus what the change makes of x. Takes memory for one layer's change."""
        change = self.delta(factors).reshape(layer.weight.shape).to(x.dtype)
        more = _apply(layer, x, change)
        return y.add_(more, alpha=scale) if _may_write(y, more) else y + (scale * more).to(y.dtype)


class LowRank(Kind):
    """LoRA: `up` (out, r) `down` (r, ins, k, k), in between for some convolutions `mid` (r, r, k, k)."""

    first = ("down",)
    names = ("down", "up", "mid")

    def rank(self, shapes: Mapping[str, Shape]) -> int:
        return shapes["down"][0]

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        down, up = shapes["down"], shapes["up"]
        _require(down[0] == up[1] and all(side == 1 for side in up[2:]) and len(up) == len(down))
        if "mid" not in shapes:
            return up[0], *down[1:]
        mid = shapes["mid"]
        _require(len(mid) == 4 and mid[:2] == (up[1], down[0]) and all(side == 1 for side in down[2:]))
        return up[0], down[1], *mid[2:]

    def delta(self, factors: Factors) -> Tensor:
        up, down, mid = factors["up"].flatten(1), factors["down"], factors.get("mid")
        if mid is None:
            return (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        return torch.einsum("or,rskl,si->oikl", up, mid, down.flatten(1))

    def add(self, y: Tensor, x: Tensor, layer: nn.Linear | nn.Conv2d, factors: Factors, scale: float) -> Tensor:
        down, up, mid = factors["down"], factors["up"], factors.get("mid")
        x = x.to(down.dtype)
        if isinstance(layer, nn.Linear):
            h = F.linear(x, down)
            return _add_product(y, h, up, scale) if _may_write(y, h) else y + (scale * F.linear(h, up)).to(y.dtype)
        h = _apply(layer, x, down) if mid is None else _apply(layer, F.conv2d(x, down), mid)
        if not _may_write(y, h):
            return y + (scale * F.conv2d(h, up)).to(y.dtype)
        if is_channels_last(y):
            _add_product(y.permute(0, 2, 3, 1), h.permute(0, 2, 3, 1), up.flatten(1), scale)
        else:
            y.view(*y.shape[:2], -1).baddbmm_(up.flatten(1).expand(len(y), -1, -1), h.flatten(2), alpha=scale)
        return y


class Hadamard(Kind):
    """LoHa: the product, element by element, of two changes of low rank, `w1_a` (out, r) `w1_b` (r, ins k k) and w2's.

    With `t1`, `t2` (r, r, k, k) the outer factors are `w1_a` (r, out) and `w1_b` (r, ins).
    """

    first = ("hada_w1_a",)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")

    def rank(self, shapes: Mapping[str, Shape]) -> int:
        return shapes["hada_w1_b"][0]

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        one, other = (_product_shape(shapes, f"hada_w{i}", f"hada_t{i}") for i in (1, 2))
        _require(one == other)
        return one

    def delta(self, factors: Factors) -> Tensor:
        one, other = (
            _product(factors[f"hada_w{i}_a"], factors[f"hada_w{i}_b"], factors.get(f"hada_t{i}")) for i in (1, 2)
        )
        return one * other


class Kronecker(Kind):
    """LoKr: the Kronecker product of `w1` (a, b) and `w2` (c, d, k, k), each of them whole or of low rank."""

    first = ("lokr_w1", "lokr_w1_a")
    names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

    def rank(self, shapes: Mapping[str, Shape]) -> int | None:
        low = shapes.get("lokr_w1_b", shapes.get("lokr_w2_b"))
        return None if low is None else low[0]

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        one = shapes.get("lokr_w1") or _product_shape(shapes, "lokr_w1", "")
        other = shapes.get("lokr_w2") or _product_shape(shapes, "lokr_w2", "lokr_t2")
        _require(len(one) == 2)
        return one[0] * other[0], one[1] * other[1], *other[2:]

    def delta(self, factors: Factors) -> Tensor:
        one, other = _whole(factors, "lokr_w1", None), _whole(factors, "lokr_w2", factors.get("lokr_t2"))
        return torch.kron(one.reshape(*one.shape, *[1] * (other.dim() - 2)), other)


KINDS: tuple[Kind, ...] = (LowRank(), Hadamard(), Kronecker())


def _whole(factors: Factors, name: str, core: Tensor | None) -> Tensor:
    return factors[name] if name in factors else _product(factors[f"{name}_a"], factors[f"{name}_b"], core)


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a (out, r) b (r, …); with a core (r, r, k, k): a (r, out), b (r, ins)."""
    if core is not None:
        return torch.einsum("rskl,ro,si->oikl", core, a, b)
    return (a @ b.flatten(1)).reshape(len(a), *b.shape[1:])


def _product_shape(shapes: Mapping[str, Shape], name: str, core: str) -> Shape:
    a, b, between = shapes[f"{name}_a"], shapes[f"{name}_b"], shapes.get(core)
    if between is None:
        _require(len(a) == 2 and a[1] == b[0])
        return a[0], *b[1:]
    _require(len(between) == 4 and len(a) == len(b) == 2 and between[:2] == (a[0], b[0]))
    return a[1], b[1], *between[2:]


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("factors of other shapes")


def _apply(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """x through a layer like this one with another weight, without its bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]


def _add_product(y: Tensor, h: Tensor, up: Tensor, scale: float) -> Tensor:
    """y (..., out), which lies in one piece, += scale h (..., r) up^T: one operation, no memory for what is added."""
    y.view(-1, y.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), up.t(), alpha=scale)
    return y


def _may_write(y: Tensor, h: Tensor) -> bool:
    """Whether what is made of h may be added to y where it lies: y was just made, in one piece, and nobody records."""
    free = in_place_allowed() and not torch.compiler.is_compiling()
    return free and y.dtype == h.dtype and (y.is_contiguous() or is_channels_last(y))
