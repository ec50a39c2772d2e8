"""What a stage of drawing computes and holds, told from shapes alone. Plain numbers: no network, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ops:
    """Operations of one kind and one size, all together.

    `kind`: 'conv', 'matmul', 'attention', 'long attention', or 'other', which is all that moves numbers rather than
    multiplying them. `size` is the floating-point operations of one of them, of 'other' ones the bytes that one reads
    and writes. `flops` and `nbytes` (read and written: inputs, weights and results) are sums over all `count`.
    """

    kind: str
    size: float
    count: int
    flops: float
    nbytes: float


AROUND = ("layer", "made", "reordered")
"""Kinds of what is done around operations, and told in `Ops` too. 'layer': operations that layers call one by one,
rather than a function of many steps. 'made': blocks of `size` bytes that got memory, so large that the C library may
ask the system for it. 'reordered': plain weights of `size` bytes that a convolution brings into an order of its own."""


@dataclass(frozen=True)
class StageWork:
    """One stage: 'encode' of both texts, 'picture', 'control' and 'denoise' for one step, or 'decode'.

    `peak`: most bytes that its tensors and its kernels' workspaces take at one time, weights not counted, with what the
    C library keeps of those that are freed. `ops`: what it computes. `kept`: bytes of what it gives. `peaks`: the peak
    where freed blocks of so many bytes and more go back to the system (`core.malloc`), by these bytes. `around`: what
    is done around its operations, of the kinds AROUND.
    """

    peak: int
    ops: tuple[Ops, ...]
    kept: int = 0
    peaks: Mapping[int, int] = field(default_factory=dict)
    around: tuple[Ops, ...] = ()

    def peak_where(self, freed_from: int | None) -> int:
        """The peak where freed blocks of that many bytes and more go back; None: as the C library has it by itself."""
        return self.peak if freed_from is None else self.peaks.get(freed_from, self.peak)

    @property
    def flops(self) -> float:
        """Floating-point operations; a multiply-add counts as two."""
        return sum(each.flops for each in self.ops)
