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


@dataclass(frozen=True)
class StageWork:
    """One stage: 'encode' of both texts, 'picture', 'control' and 'denoise' for one step, or 'decode'.

    `peak`: most bytes that its tensors and its kernels' workspaces take at one time, weights not counted. `ops`: what
    it computes. `kept`: bytes of what it gives. `given_back`: the peak where freed memory goes back to the system all
    the while (`core.malloc`), as with sequential offload of one slot, not only where the VAE's slices or strips
    want it.
    """

    peak: int
    ops: tuple[Ops, ...]
    kept: int = 0
    given_back: int = 0

    @property
    def flops(self) -> float:
        """Floating-point operations; a multiply-add counts as two."""
        return sum(each.flops for each in self.ops)
