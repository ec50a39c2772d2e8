"""What every technique declares and offers.

A technique is one file: a frozen dataclass of its settings, and the methods that switch it on the pipelines. It says
what it costs, why it cannot be used here, how to apply it, and hands back how to take it back. `pipe.enable`,
`generate --enable`, rows of the benchmarks and the contract tests read these declarations where they run; the price
list, the options of `generate` and the list of the pipelines' methods are drawn from them by `make generated`, so that
`--help` needs no torch and editors complete.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, ClassVar

import torch

from ..core.flag import Flag
from ..run.size import CallSize
from .hooks import Undo

if TYPE_CHECKING:
    from ..offload.residency import Pieces, Residency
    from .subject import Subject

UNetCalls = Mapping[CallSize, float]
"""Sizes of the calls of the UNet that a step makes, and how many of each on average."""


class Phase(IntEnum):
    """When a technique is applied; undone in reverse. Layout has to be settled before weights travel, and so on.

    Those of the last phase change no network, but each run (`Subject.each_run`).
    """

    PRECISION = 0
    LAYOUT = 1
    ATTENTION = 2
    SLICING = 3
    PACKING = 4
    OFFLOAD = 5
    GRAPH = 6
    RUN = 7


class Exactness(StrEnum):
    """What a technique does to the picture.

    `exact`: the same algebra, a float32 result within 1e-5 of the plain path relative to its largest value.
    `rounding`: numbers of lower precision. `approximate`: something else is computed.
    """

    EXACT = "exact"
    ROUNDING = "rounding"
    APPROXIMATE = "approximate"


@dataclass(frozen=True)
class Price:
    """A technique's line in the price list, in words for the user."""

    saves: str
    costs: str
    use: str
    refuses: str


class Technique(ABC):
    """Base of the techniques; subclasses are frozen dataclasses whose fields are the settings."""

    name: ClassVar[str]
    title: ClassVar[str]
    phase: ClassVar[Phase]
    exactness: ClassVar[Exactness]
    price: ClassVar[Price]
    calls: ClassVar[tuple[str, ...]]
    """How it is switched on by hand: calls on a pipeline as users write them."""

    flag: ClassVar[Flag | None] = None
    """The option of `leandiffusion generate` that switches it on; `--enable NAME` does for every technique."""

    bench_row: ClassVar[tuple[str, str] | None] = None
    """The benchmark suite that has a row of this technique alone, and the row's title; its name is the technique's."""

    group: ClassVar[str] = ""
    """Techniques of one group replace each other; every technique is a group of its own unless this says otherwise."""

    refuses: ClassVar[tuple[str, ...]] = ()
    """Names of techniques that cannot be on at the same time. Said by one of the two is enough."""

    optional: ClassVar[bool] = False
    """Whether going on without it draws the same picture, so that a machine without it gets a warning, not an error."""

    traced: ClassVar[tuple[str, ...]] = ()
    """The stages ('encode', 'picture', 'control', 'denoise', 'decode') whose work changes when networks without weights
    run with it on."""

    loads_library: ClassVar[bool] = False
    """Whether `why_not` loads a large library to find out. The planner does not ask if it leaves the technique out."""

    unplanned: ClassVar[str] = "what it gains shows only when it runs: `leandiffusion bench` measures it"
    """Why the planner leaves it to users, for those without `candidates`."""

    def why_not(self, subject: Subject) -> list[str]:
        """Reasons it cannot be used on this pipeline and machine, in words for the user; empty when it can."""
        return []

    def by_default(self, subject: Subject) -> bool:
        """Whether calls switch it on by themselves where it can be used and nobody switched it off.

        Only for what is exact and costs next to nothing. It makes way for any technique that it cannot be on with.
        """
        return False

    def notes(self, subject: Subject) -> list[str]:
        """What a user should be warned of when switching it on here, though it works; empty when there is nothing."""
        return []

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        """The settings that the planner tries for such a call, besides leaving it out; none where it is unplanned."""
        return []

    def residency(self, networks: Pieces) -> Residency | None:
        """Where weights are with it on; None for techniques that leave them where they are."""
        return None

    def shows_in(self, stage: str) -> bool:
        """Whether what is computed in that stage, as shapes tell it, changes with it on."""
        return stage in self.traced

    def library_bytes(self, device: torch.device, dtype: torch.dtype) -> int:
        """Bytes of host memory that a library takes for it, whatever is drawn."""
        return 0

    def predictions(self, call: CallSize) -> UNetCalls:
        """What a step predicts with it on, by UNet and ControlNets, where it would be once for `call` without."""
        return {call: 1}

    def unet_calls(self, call: CallSize) -> UNetCalls:
        """What the UNet is called for with it on, ControlNets aside, where it would be once for `call` without."""
        return {call: 1}

    @abstractmethod
    def apply(self, subject: Subject) -> Undo:
        """Switch it on and return how to switch it off exactly. Leaves the pipeline as it was if it raises."""

    def __str__(self) -> str:
        """Its name, with the settings that differ from the defaults: 'attention_slicing(size=2)'."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}  # type: ignore[arg-type]
        settings = ", ".join(f"{name}={str(v) if isinstance(v, torch.device) else v!r}" for name, v in values.items())
        return f"{self.name}({settings})" if settings else self.name
