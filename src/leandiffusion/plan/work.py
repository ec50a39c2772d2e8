"""What a stage of drawing computes and holds, told from shapes alone. Plain numbers: no network, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ops:
    """Operations of one kind and one size, all together.

    `kind`: 'conv', 'matmul', 'attention', or 'other', which is all that moves numbers rather than multiplying them.
    `size` is the floating-point operations of one of them, of 'other' ones the bytes that one reads and writes.
    `flops` and `nbytes` (read and written: inputs, weights and results) are sums over all `count`.
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
    it computes. `kept`: bytes of what it gives.
    """

    peak: int
    ops: tuple[Ops, ...]
    kept: int = 0

    @property
    def flops(self) -> float:
        """Floating-point operations; a multiply-add counts as two."""
        return sum(each.flops for each in self.ops)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {"peak": self.peak, "ops": [vars(each) for each in self.ops], "kept": self.kept}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StageWork:
        """The stage that `to_json` wrote."""
        return cls(int(values["peak"]), tuple(Ops(**each) for each in values["ops"]), int(values["kept"]))
