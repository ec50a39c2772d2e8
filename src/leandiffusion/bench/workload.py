"""What is drawn, the same for every row of a run; and what a row's process is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROMPT = "a photo of an astronaut riding a horse on mars"
"""The prompt of the published figures."""

GUIDANCE = 7.5


@dataclass(frozen=True)
class Workload:
    """`model` as it was named, pictures of `size` x `size` pixels, `batch` of them per call.

    `half` is the dtype that half precision means here, 'float16' or 'bfloat16' ('float32' where it is
    switched off). `steps` are measured after one warm-up step; `repeat` rounds.
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

    `name` is what `--rows` takes. `dtype`: 'float32', or 'half' for the workload's half precision. `enable` are the
    techniques to switch on, in this order, each with its settings; `adds` is the one that the row is about: where it
    cannot be used the row is absent, while others that only save time are left out with a note. `offload` is handed to
    `from_pretrained`. `peer` draws it instead of this library, with `settings` of its own. `size` overrides the
    workload's. With `pictures` False nothing is decoded. `asked` says why a row runs only when it is named; empty for
    those that always run.
    """

    name: str
    title: str
    dtype: str = "half"
    enable: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    adds: str | None = None
    offload: str | None = None
    peer: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    pictures: bool = True
    asked: str = ""

    def describe(self, half: str) -> str:
        """Its settings for the table's notes: 'float16, channels_last, traced_unet'."""
        parts = [half if self.dtype == "half" else self.dtype]
        if self.offload is not None:
            parts.append(f"offload={self.offload!r}")
        for name, settings in self.enable:
            inside = ", ".join(f"{key}={value!r}" for key, value in settings.items())
            parts.append(f"{name}({inside})" if inside else name)
        parts += [f"{key}={value!r}" for key, value in self.settings.items()]
        return (f"{self.peer}: " if self.peer else "") + ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        enable = [[name, dict(settings)] for name, settings in self.enable]
        return {**vars(self), "enable": enable, "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        """The row that `to_json` wrote."""
        return cls(**{**values, "enable": tuple((name, settings) for name, settings in values["enable"])})


@dataclass(frozen=True)
class Job:
    """What one process is asked to draw: a row of a workload. Travels to it as JSON.

    `checkpoint` is the model on disk: a pipeline folder or a single file. `workdir` is a folder for files that later
    processes of the same row can use again. `picture` is where the picture goes, as an .npy file (B, H, W, 3) float32
    in [0, 1].
    """

    row: Row
    workload: Workload
    checkpoint: str
    workdir: str
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
        return {**vars(self), "row": self.row.to_json(), "workload": vars(self.workload)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Job:
        """The job that `to_json` wrote."""
        workload = Workload(**values["workload"])
        return cls(**{**values, "row": Row.from_json(values["row"]), "workload": workload})
