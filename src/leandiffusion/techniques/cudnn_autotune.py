"""cuDNN's own search for the fastest convolution of each shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..device.capabilities import why_no_cudnn
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, set_global
from .subject import Subject
from .switchable import Switchable


@techniques.register("cudnn_autotune")
@dataclass(frozen=True)
class CudnnAutotune(Technique):
    """Sets `torch.backends.cudnn.benchmark`, which concerns the whole process."""

    name: ClassVar[str] = "cudnn_autotune"
    title: ClassVar[str] = "cuDNN autotuner"
    phase: ClassVar[Phase] = Phase.PRECISION
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ("enable_cudnn_autotune()", "torch.backends.cudnn.benchmark = True")
    optional: ClassVar[bool] = True
    price: ClassVar[Price] = Price(
        saves="A little time in convolutions, once the first picture of a size is drawn.",
        costs="The first picture of each size is slower, while kernels are tried; some need more memory.",
        use="Many pictures of one size on an NVIDIA GPU.",
        refuses="Nothing; without cuDNN it has no effect, and says so.",
    )

    def why_not(self, subject: Subject) -> list[str]:
        reason = why_no_cudnn()
        return [] if reason is None else [reason]

    def apply(self, subject: Subject) -> Undo:
        return set_global(torch.backends.cudnn, "benchmark", True)


class CudnnAutotuneMethods(Switchable):
    """Methods of the pipelines."""

    def enable_cudnn_autotune(self) -> None:
        """Let cuDNN try its kernels on each new shape and keep the fastest. A warning where there is no cuDNN."""
        self.enable("cudnn_autotune")
