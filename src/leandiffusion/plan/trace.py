"""Runs code on the meta device and tells what it would compute, and the most bytes that it would hold at one time.

Followed are storages, not tensors: views share theirs, and one is alive until the last tensor on it is gone, which is
when the real one would be freed, since the same code runs. What kernels take inside, which no dispatch sees, is added
for the moment of each operation (`plan.kernels`).
"""

from __future__ import annotations

import sys
import weakref
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.malloc import LARGE
from ..core.shapes import traced_by
from .kernels import Gives, Operation, kernel_of, operation_of
from .work import AROUND, Ops, StageWork

Sums = dict[tuple[str, float], list[float]]
"""(kind, size) -> count, floating-point operations, bytes."""


class _Seen(NamedTuple):
    """What a function gave, as `_described`; the most that was in blocks of each heap and in others, beyond what was
    before; and what it computed."""

    result: Any
    kept: list[int]
    others: list[int]
    sums: Sums


class Tracer(TorchDispatchMode):
    """A mode in which operations on meta tensors are noted. `on_host`: meta stands for the CPU.

    What exists before is not counted: weights, and whatever else was made outside. `holes` tells of the C library, for
    one size or several from which freed blocks go back to the system: what lies between smaller ones, as a share of the
    most that these took at one time. They stay with the process, so that it keeps that share and that most until it is
    trimmed, whatever larger blocks come then. With no such sizes all of them go back, which is exact for tensors.
    """

    def __init__(self, *, on_host: bool, holes: Mapping[int, float] | None = None) -> None:
        super().__init__()
        self.on_host, self.holes = on_host, dict(sorted((holes or {sys.maxsize: 0.0}).items()))
        self._sizes = tuple(self.holes)
        self._by_size = [0] * (len(self._sizes) + 1)  # of what is alive, blocks from one size up to the next
        self.begin()
        self._count = 1
        self._in_function = False
        self._known: dict[int, weakref.ref[Any]] = {}
        self._repeated: dict[Any, _Seen | None] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, symbolic algebra with it, to keep that from looking into this mode."""
        return False

    @property
    def ops(self) -> tuple[Ops, ...]:
        """What was computed, by kind and size; the largest share of each kind first."""
        return tuple(ops for ops in self._noted if ops.kind not in AROUND)

    @property
    def around(self) -> tuple[Ops, ...]:
        """What was done around that, likewise."""
        return tuple(ops for ops in self._noted if ops.kind in AROUND)

    @property
    def _noted(self) -> list[Ops]:
        found = [Ops(kind, size, int(n), flops, nbytes) for (kind, size), (n, flops, nbytes) in self._sums.items()]
        return sorted(found, key=lambda ops: (ops.kind, -ops.flops, -ops.nbytes))

    @property
    def alive(self) -> int:
        """Bytes of tensors that are there."""
        return sum(self._by_size)

    def begin(self) -> None:
        """Go on as if nothing had been computed yet; what is alive stays so."""
        self._sums = _no_sums()
        self._peaks = [0.0] * len(self._sizes)
        self._most_kept, self._most_others = self._held

    @property
    def peaks(self) -> dict[int, int]:
        """The most bytes that were held at one time, by the size from which freed blocks go back."""
        return dict(zip(self._sizes, map(int, self._peaks_since()), strict=True))

    @property
    def _held(self) -> tuple[list[int], list[int]]:
        """What is alive in blocks that the C library keeps when they are freed, by the size up to which it does, and
        in others."""
        kept = list(accumulate(self._by_size[:-1]))
        return kept, [self.alive - each for each in kept]

    def _peaks_since(self) -> list[float]:
        """With those since memory was trimmed."""
        since = zip(self.holes.values(), self._most_kept, self._most_others, strict=True)
        found = [(1 + share) * kept + others for share, kept, others in since]
        return [max(pair) for pair in zip(self._peaks, found, strict=True)]

    # -- what `core.shapes` asks of a tracer ---------------------------------------------------------------------------

    @contextmanager
    def times(self, count: int) -> Iterator[None]:
        """Meanwhile each operation stands for so many."""
        before, self._count = self._count, self._count * count
        try:
            yield
        finally:
            self._count = before

    def trimmed(self) -> None:
        """What was kept of freed blocks goes back to the system now."""
        self._peaks = self._peaks_since()
        self._most_kept, self._most_others = self._held

    def once(self, function: Callable[..., Tensor], args: Any, kwargs: Mapping[str, Any]) -> Tensor:
        """`function(*args, **kwargs)`; with shapes that were seen before, in any trace, not that, but what it took
        then."""
        key = self.on_host, self._sizes, function, *map(_described, args), *map(_described, kwargs.values())
        before, self._in_function = self._in_function, True
        try:
            return self._run_once(_seen, key, function, args, kwargs)
        finally:
            self._in_function = before

    def repeat(self, what: Any, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The same for a function that is `what`, for as long as this tracer is there. Where it gives anything but one
        new tensor or nothing, or keeps something besides, it runs each time."""
        key = what, *map(_described, args), *kwargs, *map(_described, kwargs.values())
        return self._run_once(self._repeated, key, function, args, kwargs)

    def _run_once(
        self, known: dict[Any, _Seen | None], key: Any, function: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        if key not in known:
            result, known[key] = self._apart(function, args, kwargs)
            return result
        seen = known[key]
        if seen is None:
            return function(*args, **kwargs)
        kept, others = self._held
        self._raise(
            [sum(pair) for pair in zip(kept, seen.kept, strict=True)],
            [sum(pair) for pair in zip(others, seen.others, strict=True)],
        )
        self._add(seen.sums)
        if seen.result is None:
            return None
        shape, strides, dtype = seen.result
        with self.times(0):  # it is among the sums
            result = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        self._hold(result)
        return result

    def _apart(self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, _Seen | None]:
        """What the function gives, and what it takes; None where it gives anything but one new tensor or nothing, or
        keeps something."""
        before = self._most_kept, self._most_others
        count, sums, alive = self._count, self._sums, self.alive
        kept, others = self._held
        self._most_kept, self._most_others = [*kept], [*others]
        self._count, self._sums = 1, _no_sums()
        try:
            result = function(*args, **kwargs)
            rises = _beyond(kept, self._most_kept), _beyond(others, self._most_others)
            own = self._sums
        finally:
            self._count, self._sums = count, sums
            self._raise(*before)
        self._add(own)
        new = self.alive - alive
        if isinstance(result, Tensor):
            repeats = new == result.untyped_storage().nbytes() == result.nbytes
        else:
            repeats = result is None and not new
        return result, _Seen(_described(result), *rises, own) if repeats else None

    # -- operations ----------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = operation_of(func)
        gives = operation.gives
        if gives is Gives.VIEW:
            return operation.run(*args, **kwargs)
        if gives is Gives.OWN:
            result = operation.run(*args, **kwargs)
            if not isinstance(result, Tensor | tuple | list):  # what was asked of the machine, and no tensor
                return result
            self._hold(result)
            if self.on_host:
                self._add_made(result)
        else:
            result = kwargs["out"] if gives is Gives.OUT else args[0]
        if operation.moves:
            self.note(operation, args, kwargs, result)
        return result

    def note(self, operation: Operation, args: Any, kwargs: Any, result: Any) -> None:
        """Count what the operation computed and moved, and what it took meanwhile."""
        kind, flops, nbytes, workspace, reordered = kernel_of(operation, args, kwargs, result, on_host=self.on_host)
        self._look(workspace)
        size = nbytes if kind == "other" else flops
        self._add({(kind, float(f"{size:.1e}")): [1, flops, nbytes]})
        if not self._in_function:
            self._add({("layer", 0.0): [1, 0.0, 0.0]})
        if reordered:
            self._add({("reordered", float(reordered)): [1, 0.0, reordered]})

    def _add_made(self, result: Any) -> None:
        """Note the blocks of what an operation gave, those that are large enough to come from the system."""
        for tensor in (result,) if isinstance(result, Tensor) else result:
            if tensor.is_meta and (nbytes := tensor.untyped_storage().nbytes()) >= LARGE:
                self._add({("made", float(nbytes)): [1, 0.0, nbytes]})

    def _add(self, sums: Sums) -> None:
        for key, values in sums.items():
            mine = self._sums[key]
            for i, value in enumerate(values):
                mine[i] += self._count * value

    def _hold(self, result: Any) -> None:
        """Count the storages of what an operation gave, those that are new."""
        for tensor in (result,) if isinstance(result, Tensor) else result:
            if not tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            key, nbytes = storage._cdata, storage.nbytes()
            if key not in self._known:
                which = bisect_right(self._sizes, nbytes)
                self._known[key] = weakref.ref(storage, self._when_freed(key, nbytes, which))
                self._by_size[which] += nbytes
        self._look()

    def _when_freed(self, key: int, nbytes: int, which: int) -> Callable[[Any], None]:
        def freed(_: Any) -> None:
            self._by_size[which] -= nbytes
            del self._known[key]

        return freed

    def _look(self, workspace: int = 0) -> None:
        kept, others = self._held
        which = bisect_right(self._sizes, workspace)
        for i in range(len(kept)):
            (kept if i >= which else others)[i] += workspace
        self._raise(kept, others)

    def _raise(self, kept: list[int], others: list[int]) -> None:
        """Note that so much was held."""
        self._most_kept = [*map(max, self._most_kept, kept)]
        self._most_others = [*map(max, self._most_others, others)]


_seen: dict[Any, _Seen | None] = {}


def _no_sums() -> Sums:
    return defaultdict(lambda: [0, 0.0, 0.0])


def _beyond(before: list[int], most: list[int]) -> list[int]:
    return [after - each for each, after in zip(before, most, strict=True)]


def _described(value: Any) -> Any:
    """Shape, strides and dtype of a tensor, a mapping's items; anything else as it is."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple((key, _described(each)) for key, each in value.items()) if isinstance(value, Mapping) else value


def trace(
    function: Callable[..., object], before: Callable[[], Any] = lambda: (), *, on_host: bool,
    holes: Mapping[int, float] | None = None,
) -> StageWork:  # fmt: skip
    """What `function(*before())` computes and holds, which works on the meta device; its result is held to the end.

    Without gradients. Tensors that exist already, weights above all, are not counted; what `before` makes is held, but
    is not part of what is computed. `holes` as a `Tracer` has them: the peak is that of the largest of these sizes.
    """
    tracer = Tracer(on_host=on_host, holes=holes)
    with torch.no_grad(), traced_by(tracer), tracer:
        held = before()
        tracer.begin()
        alive = tracer.alive
        result = function(*held)
        kept = tracer.alive - alive
        del result
    peaks = tracer.peaks
    return StageWork(peaks[max(peaks)], tracer.ops, kept, peaks if holes else {}, tracer.around)
