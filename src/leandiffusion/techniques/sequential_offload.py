"""Sequential offload: layers travel one after the other, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..core.errors import ConfigError
from ..core.flag import Flag
from ..offload.policy import SLOTS, Policy
from ..offload.units import GRANULARITIES
from ..run.size import CallSize
from . import techniques
from .base import Price, Technique
from .offloading import OFFLOAD_FLAG, Offload, device_of
from .subject import Subject
from .switchable import Switchable

TENTHS = range(10)
"""Of the weights, which the planner tries to keep on the device."""


@techniques.register("sequential_offload")
@dataclass(frozen=True)
class SequentialOffload(Offload):
    """`granularity`: 'leaf' layers travel one by one, 'block's of them together. `resident_fraction` of the weights,
    from 0 to 1, stay on the device. `slots`: memory there for the others, in largest units, at least 1. With one the
    largest arrive only when they are needed, and freed memory goes back to the system sooner. Leaves from disk that
    take more than 16 MiB arrive and compute in parts.

    ConfigError for values outside these.
    """

    granularity: str = "leaf"
    resident_fraction: float = 0.0
    slots: int = SLOTS

    name: ClassVar[str] = "sequential_offload"
    title: ClassVar[str] = "Sequential offload"
    calls: ClassVar[tuple[str, ...]] = ("enable_sequential_cpu_offload()", 'from_pretrained(…, offload="sequential")')
    flag: ClassVar[Flag] = replace(OFFLOAD_FLAG, value="sequential")
    bench_row: ClassVar[tuple[str, str]] = ("memory", "sequential offload")
    refuses: ClassVar[tuple[str, ...]] = ("traced_unet", "compile")
    price: ClassVar[Price] = Price(
        saves="Nearly all memory of weights: the device holds a few layers at a time, while the next ones come.",
        costs="Every step reads every weight from the tier below: from host memory over PCIe, or from the checkpoint "
        "on disk. Where computing a layer takes longer than fetching the next, little time is lost.",
        use="The model does not fit otherwise. On a CPU switch it on before the first picture: then the model never is "
        "in memory as a whole. Raise resident_fraction until memory is used up.",
        refuses="A traced or compiled UNet fixes where its weights are, and here they move.",
    )

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES[:2]:
            raise ConfigError(
                f"granularity={self.granularity!r}: use 'leaf' or 'block'; moving whole components is model offload."
            )
        if not isinstance(self.resident_fraction, int | float) or not 0 <= self.resident_fraction <= 1:
            raise ConfigError(f"resident_fraction={self.resident_fraction!r} must lie between 0 and 1.")
        if isinstance(self.slots, bool) or not isinstance(self.slots, int) or self.slots < 1:
            raise ConfigError(
                f"slots={self.slots!r} must be a whole number from 1 up: with 2 one layer computes while the next "
                "arrives, with 1 the largest take turns."
            )

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        own = cls.settings_of(subject)
        return [cls(**own, slots=1), *(cls(**own, resident_fraction=tenth / 10) for tenth in TENTHS)]

    @property
    def policy(self) -> Policy:
        return Policy(self.compute_device, self.granularity, self.resident_fraction, self.slots)


class SequentialOffloadMethods(Switchable):
    """Methods of the pipelines."""

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None, **settings: Any
    ) -> None:
        """Bring layers to the device one after the other, the next while one computes. `settings`: granularity,
        resident_fraction and slots of `techniques.sequential_offload`. Below a CPU lies the checkpoint on disk."""
        self.enable("sequential_offload", device=device_of(gpu_id, device), **settings)
