"""Memory-efficient attention: which kernel computes attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..attention import AttentionBackend, backends
from ..attention.choose import memory_efficient
from ..attention.openvino import LIBRARY_BYTES, is_faster
from ..core.flag import Flag
from ..modules.transformer import attention_layers, set_attention_backend
from ..run.size import CallSize
from . import techniques
from .attention_slicing import kernel_and_size, networks_with_attention, switch_backends, why_no_attention
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo
from .packed_weights import WORTH
from .subject import Subject
from .switchable import Switchable


@techniques.register("attention_backend")
@dataclass(frozen=True)
class AttentionBackendChoice(Technique):
    """`backend`: a kernel's name, or 'memory_efficient' for xFormers where it runs and the best elsewhere.

    `attention_op` is xFormers' own choice of operator. ConfigError for unknown names.
    """

    backend: str = "memory_efficient"
    attention_op: Any = None

    name: ClassVar[str] = "attention_backend"
    title: ClassVar[str] = "Memory-efficient attention"
    phase: ClassVar[Phase] = Phase.ATTENTION
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = (
        "enable_xformers_memory_efficient_attention()",
        'set_attention_backend("sdpa")',
    )
    flag: ClassVar[Flag] = Flag(
        "--attention", "Kernel of attention, such as sdpa, flash, xformers.", value="BACKEND", setting="backend"
    )
    traced: ClassVar[tuple[str, ...]] = ("picture", "control", "denoise", "decode")
    price: ClassVar[Price] = Price(
        saves="The matrix of scores, which grows with the square of the picture's area; and the time to write it.",
        costs="Nothing. torch's kernel, `sdpa`, is memory-efficient too. OpenVINO takes some 80 MB.",
        use="xFormers is installed and faster than torch's own kernels on your GPU: measure. By default it is on where "
        "OpenVINO is installed and its kernel is faster: on AMD's CPUs with AVX-512, for full-size networks.",
        refuses="Kernels that the device or dtype cannot run, by name; a traced UNet.",
    )

    def __post_init__(self) -> None:
        if self.backend != "memory_efficient":
            backends.get(self.backend)

    def why_not(self, subject: Subject) -> list[str]:
        reasons = why_no_attention(subject)
        if self.backend != "memory_efficient" and not reasons:
            reasons = backends.get(self.backend).why_not(subject.device, subject.dtype)
        return reasons

    def by_default(self, subject: Subject) -> bool:
        """Where OpenVINO's kernel is the fastest, nobody chose another, and the UNet is large enough to show it."""
        layers = [layer for network in networks_with_attention(subject) for _, layer in attention_layers(network)]
        large = sum(weight.nbytes for weight in subject.denoiser.parameters()) >= WORTH
        plain = all(kernel_and_size(layer.backend)[0] == backends.get("sdpa") for layer in layers)
        return large and plain and is_faster(subject.device, subject.dtype)

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        return [cls()] if is_faster(subject.device, subject.dtype) else []

    def shows_in(self, stage: str) -> bool:
        """Not for kernels that work as the default one does: what they hold, the library takes (`library_bytes`)."""
        return stage in self.traced and self.backend not in ("memory_efficient", "openvino", "sdpa")

    def library_bytes(self, device: torch.device, dtype: torch.dtype) -> int:
        faster = self.backend == "memory_efficient" and is_faster(device, dtype)
        return LIBRARY_BYTES if faster or self.backend == "openvino" else 0

    def notes(self, subject: Subject) -> list[str]:
        reason = self._choose(subject)[1]
        return [] if reason is None else [reason]

    def apply(self, subject: Subject) -> Undo:
        def switch_all() -> None:
            for network in networks_with_attention(subject):
                set_attention_backend(network, self._choose(subject)[0])

        return switch_backends(subject, switch_all)

    def _choose(self, subject: Subject) -> tuple[AttentionBackend, str | None]:
        if self.backend != "memory_efficient":
            return backends.get(self.backend), None
        return memory_efficient(subject.device, subject.dtype, self.attention_op)


class AttentionBackendMethods(Switchable):
    """Methods of the pipelines."""

    def set_attention_backend(self, backend: str) -> None:
        """Compute attention with that kernel: 'sdpa' (the default), 'xformers', 'flash', … ConfigError lists them."""
        self.enable("attention_backend", backend=backend)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """xFormers' attention where it is installed and runs; elsewhere the fastest kernel there is, with a warning."""
        self.enable("attention_backend", attention_op=attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Back to the default kernel."""
        self.disable("attention_backend")
