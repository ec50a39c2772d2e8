"""What is drawn, the same for every row of a run; and what a row's process is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

PROMPT = "a photo of an astronaut riding a horse on mars"
"""The prompt of the published figures."""

GUIDANCE = 7.5


@dataclass(frozen=True)
class Workload:
    """`model` as it was named, pictures of `size` x `size` pixels, `batch` of them per call.

    `half` is the dtype that half precision means here, 'float16' or 'bfloat16' ('float32' where nothing shall be
    halved). `steps` are measured after one warm-up step; `repeat` rounds.
    """

    model: str
    size: int
    steps: int
    batch: int
    half: str
    device: str
    repeat: int
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One way of drawing the workload.

    `name` is what `--rows` takes. `dtype`: 'float32', or 'half' for the workload's half precision. `techniques` are
    switched on with their settings, in this order; `adds` is the one that the row is about: where it can not be used
    the row is absent, while others that only save time are left out with a note. `offload` is handed to
    `from_pretrained`. `peer` draws it instead of this library, with `settings` of its own. `size` overrides the
    workload's. `pictures` False leaves decoding out. `asked` says why a row runs only when it is named; empty for those
    that always run.
    """

    name: str
    title: str
    dtype: str = "half"
    techniques: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    adds: str | None = None
    offload: str | None = None
    peer: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    pictures: bool = True
    asked: str = ""

    def describe(self, half: str) -> str:
        """Its settings in words, for the table's notes: 'float16, channels_last, traced_unet'."""
        parts = [half if self.dtype == "half" else self.dtype]
        if self.offload is not None:
            parts.append(f"offload={self.offload!r}")
        for name, settings in self.techniques:
            inside = ", ".join(f"{key}={value!r}" for key, value in settings.items())
            parts.append(f"{name}({inside})" if inside else name)
        parts += [f"{key}={value!r}" for key, value in self.settings.items()]
        return (f"{self.peer}: " if self.peer else "") + ", ".join(parts)


@dataclass(frozen=True)
class Job:
    """What one process is asked to draw: a row of a workload. Travels to it as JSON.

    `folder` is the model's checkpoint: a diffusers-layout folder, or what `open_pipeline` takes. `work` is a folder for
    files that later processes of the same row may use again. `picture` is where the picture goes, as an .npy file
    (B, H, W, 3) float32 in [0, 1].
    """

    row: Row
    workload: Workload
    folder: str
    work: str
    picture: str | None

    @property
    def dtype(self) -> str:
        """Name of the torch dtype of the weights."""
        return self.workload.half if self.row.dtype == "half" else self.row.dtype

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.row.size or self.workload.size

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        row = {**vars(self.row), "techniques": [[n, dict(s)] for n, s in self.row.techniques]}
        return {**vars(self), "row": {**row, "settings": dict(self.row.settings)}, "workload": vars(self.workload)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Job:
        """The job that `to_json` wrote."""
        row = Row(**values["row"])
        row = replace(row, techniques=tuple((name, settings) for name, settings in row.techniques))
        return cls(**{**values, "row": row, "workload": Workload(**values["workload"])})
