"""TF32 on NVIDIA GPUs, and its counterpart on CPUs: float32 weights, products in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.flag import Flag
from ..device.capabilities import fewer_bits, why_no_tf32
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, set_global, together
from .subject import Subject
from .switchable import Switchable


@techniques.register("tf32")
@dataclass(frozen=True)
class TF32(Technique):
    """Sets torch's float32 precision of matrix products and convolutions, which concerns the whole process.

    On a GPU of compute capability 8 or more they run in TF32 (8 bits of exponent, 10 of mantissa). On a CPU whose
    instructions multiply bfloat16 oneDNN rounds to that and accumulates in float32.
    """

    name: ClassVar[str] = "tf32"
    title: ClassVar[str] = "TF32"
    phase: ClassVar[Phase] = Phase.PRECISION
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    calls: ClassVar[tuple[str, ...]] = ("enable_tf32()", 'torch.backends.cuda.matmul.fp32_precision = "tf32"')
    flag: ClassVar[Flag] = Flag("--tf32", "Float32 products in TF32; on CPUs in bfloat16.")
    optional: ClassVar[bool] = True
    price: ClassVar[Price] = Price(
        saves="Time of float32 products and convolutions, on GPUs and on CPUs with amx_bf16. With avx512_bf16 alone it "
        "saves some on AMD's CPUs and may cost some on Intel's: `leandiffusion bench published` measures it.",
        costs="About three decimal digits in each product; sums stay in float32. No memory is saved.",
        use="Float32 weights have to stay float32. Half-precision weights are faster still.",
        refuses="Nothing; on a machine without such instructions it has no effect, and says so.",
    )

    def why_not(self, subject: Subject) -> list[str]:
        reason = why_no_tf32(subject.device)
        return [] if reason is None else [reason]

    def apply(self, subject: Subject) -> Undo:
        owners, precision = fewer_bits(subject.device)
        return together([set_global(owner, "fp32_precision", precision) for owner in owners])


class TF32Methods(Switchable):
    """Methods of the pipelines."""

    def enable_tf32(self) -> None:
        """Compute float32 products in TF32, or on CPUs in bfloat16. A warning where the machine has neither."""
        self.enable("tf32")
