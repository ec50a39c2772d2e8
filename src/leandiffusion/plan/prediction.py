"""What a call was predicted to take, or measured to: peak memory and seconds of each stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

STAGES = ("encode", "denoise", "decode")
"""Those that every call has; one on pictures has 'picture' besides, between the first two, and one with pictures that
IP-Adapters see 'image' before that."""

BESIDES = ("image", "picture")
"""Those in which what computes stays on disk, and is read a weight at a time."""


@dataclass(frozen=True)
class StagePrediction:
    """Bytes on the device at the worst moment of a stage, the process's own included on a CPU, and its seconds."""

    peak: int
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """Of a whole call, by stage. `host` are bytes of host memory at the worst moment, beside an accelerator."""

    stages: Mapping[str, StagePrediction]
    host: int = 0

    @property
    def peak(self) -> int:
        """Bytes on the device at the worst moment."""
        return max(stage.peak for stage in self.stages.values())

    @property
    def seconds(self) -> float:
        """Of all stages. Opening the model is not among them."""
        return sum(stage.seconds for stage in self.stages.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {"host": self.host, **{name: vars(stage) for name, stage in self.stages.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The prediction that `to_json` wrote. KeyError, TypeError or ValueError for anything else."""
        names = ("encode", *(name for name in BESIDES if name in values), *STAGES[1:])
        stages = {name: StagePrediction(values[name]["peak"], float(values[name]["seconds"])) for name in names}
        for name, figure in [("host", values["host"]), *((name, stage.peak) for name, stage in stages.items())]:
            if type(figure) is not int or figure < 0:
                raise ValueError(f"{name}: {figure!r} bytes")
        for name, stage in stages.items():
            if not 0 <= stage.seconds < math.inf:
                raise ValueError(f"{name}: {stage.seconds} seconds")
        return cls(stages, values["host"])

    @property
    def figures(self) -> dict[str, float]:
        """'peak_memory' in bytes and the seconds of each stage, as a picture's record has them."""
        return {"peak_memory": self.peak, **{name: round(stage.seconds, 4) for name, stage in self.stages.items()}}

    @property
    def worst(self) -> str:
        """The stage that sets the peak."""
        return max(self.stages, key=lambda name: self.stages[name].peak)
