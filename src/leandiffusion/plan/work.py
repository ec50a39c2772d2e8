"""What a stage of drawing computes and holds, told from shapes alone. Plain numbers: no network, no torch."""

from __future__ import annotations

from dataclasses import dataclass


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

    `peak`: most bytes that its tensors and its kernels' workspaces take at one time, weights not counted. `ops`: what
    it computes. `kept`: bytes of what it gives. `given_back`: the peak where freed memory goes back to the system all
    the while (`core.malloc`), as with sequential offload of one slot, not only where the VAE's slices or strips
    want it. `around`: what is done around its operations, of the kinds AROUND.
    """

    peak: int
    ops: tuple[Ops, ...]
    kept: int = 0
    given_back: int = 0
    around: tuple[Ops, ...] = ()

    @property
    def flops(self) -> float:
        """Floating-point operations; a multiply-add counts as two."""
        return sum(each.flops for each in self.ops)
