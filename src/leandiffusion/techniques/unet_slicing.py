"""Sliced UNet: a step's predictions are made a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.flag import Flag
from ..modules.text_memory import TextMemory, current_memory, remembering
from ..run.rows import taken
from ..run.run import Run, UNetCall
from ..run.size import CallSize
from . import techniques
from .base import Exactness, Phase, Price, Technique, UNetCalls
from .hooks import Undo
from .subject import Subject, why_no_runs
from .switchable import Switchable


@techniques.register("unet_slicing")
@dataclass(frozen=True)
class UNetSlicing(Technique):
    """`size` predictions at a time. Under classifier-free guidance a picture takes two: with 2 or more, whole pictures
    go together; with 1 its halves go apart. ConfigError unless it is a whole number from 1 up.
    """

    size: int = 1

    name: ClassVar[str] = "unet_slicing"
    title: ClassVar[str] = "Sliced UNet"
    phase: ClassVar[Phase] = Phase.RUN
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ("enable_unet_slicing(size=1)",)
    flag: ClassVar[Flag] = Flag(
        "--unet-slicing", "Make N of a step's predictions at a time.",
        value="N", setting="size", number="a number of predictions",
    )  # fmt: skip
    bench_row: ClassVar[tuple[str, str]] = ("memory", "UNet slicing")
    refuses: ClassVar[tuple[str, ...]] = ("deep_cache",)
    price: ClassVar[Price] = Price(
        saves="Working memory of the UNet: that of a few predictions, whatever the batch; half of a guided picture's "
        "with size=1.",
        costs="What the predictions of a batch share, such as reading weights, is done for each part; on a GPU small "
        "parts leave it idle.",
        use="Several pictures per call, or one that nearly fits.",
        refuses="Deep features, which are kept for whole batches; pipelines of diffusers, whose loop is not this "
        "library's.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ConfigError(f"size={self.size!r}: pass how many predictions to make at a time, 1 or more.")

    def why_not(self, subject: Subject) -> list[str]:
        if reasons := why_no_runs(subject):
            return reasons
        if not isinstance(subject.denoiser, nn.Module):
            kind = type(subject.denoiser).__name__
            return [f"the UNet is a {kind}, expected a torch module: another object may take whole batches only"]
        return []

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        rows = call.batch * call.predictions
        return [cls(size) for size in (1, 2, 4, 8, 16) if size < rows]

    def unet_calls(self, call: CallSize) -> UNetCalls:
        calls: dict[CallSize, float] = {}
        for pictures, texts in _parts(call.batch, call.predictions, self.size):
            alone = {"guidance": False, "perturbed": False} if len(texts) == 1 else {}
            part = replace(call, batch=len(pictures), **alone)
            calls[part] = calls.get(part, 0) + 1
        return calls

    def apply(self, subject: Subject) -> Undo:
        return subject.each_run(self._prepare)

    def _prepare(self, run: Run) -> None:
        run.call = InParts(run.call, self.size)


class UNetSlicingMethods(Switchable):
    """Methods of the pipelines."""

    def enable_unet_slicing(self, size: int = 1) -> None:
        """Make `size` of a step's predictions at a time; a guided picture takes two."""
        self.enable("unet_slicing", size=size)

    def disable_unet_slicing(self) -> None:
        """Undo `enable_unet_slicing`."""
        self.disable("unet_slicing")


class InParts:
    """Calls the UNet for one run, for a few predictions at a time."""

    def __init__(self, inner: UNetCall, size: int) -> None:
        self._inner = inner
        self._size = size
        self._memories: list[TextMemory | None] = []  # one per part
        self._memory: TextMemory | None = None  # the run's, from which they were made

    def __call__(self, run: Run, given: Tensor, i: int, inputs: Mapping[str, Any]) -> Tensor:
        pictures, predictions = run.shape[0], len(inputs["encoder_hidden_states"])
        parts = list(_parts(pictures, predictions // pictures, self._size))
        if len(parts) == 1:
            return self._inner(run, given, i, inputs)
        memory = current_memory()
        if memory is None or memory is not self._memory:  # a callback ran: text or weights may be others
            self._memory, self._memories = memory, [None] * len(parts)
        result: Tensor | None = None
        for number, (some, texts) in enumerate(parts):
            rows = [pictures * text + picture for text in texts for picture in some]
            own = taken(inputs, predictions, rows)
            kept = self._memories[number] = self._memories[number] or _memory_of(memory, own)
            own = own if kept is None else {**own, "encoder_hidden_states": kept.text}
            with remembering(kept):
                made = self._inner(run, given[rows if len(given) == predictions else list(some)], i, own)
            if result is None:
                result = made.new_empty(predictions, *made.shape[1:])
            result[rows] = made
        assert result is not None
        return result


def _memory_of(memory: TextMemory | None, inputs: Mapping[str, Any]) -> TextMemory | None:
    return None if memory is None else memory.derived(inputs["encoder_hidden_states"])


def _parts(pictures: int, texts: int, size: int) -> Iterator[tuple[range, range]]:
    """Pictures and texts, by number, whose predictions are made together."""
    if size < texts:  # the halves of guidance apart
        for picture in range(pictures):
            for text in range(texts):
                yield range(picture, picture + 1), range(text, text + 1)
        return
    step = size // texts
    for first in range(0, pictures, step):
        yield range(first, min(first + step, pictures)), range(texts)
