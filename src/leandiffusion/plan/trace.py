"""Runs code on the meta device and tells what it would compute, and the most bytes that it would hold at one time.

Followed are storages, not tensors: views share theirs, and one is alive until the last tensor on it is gone, which is
when the real one would be freed, since the same code runs. What kernels take inside, which no dispatch sees, is added
for the moment of each operation (`plan.kernels`).
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.malloc import HIGHEST, LARGE
from ..core.shapes import traced_by
from .kernels import Gives, Operation, kernel_of, operation_of
from .work import AROUND, Ops, StageWork

Sums = dict[tuple[str, float], list[float]]
"""(kind, size) -> count, floating-point operations, bytes."""


class _Seen(NamedTuple):
    """What a function gave, as `_described`; its peaks beyond what was alive; and what it computed."""

    result: Any
    peak: float
    given_back: float
    sums: Sums


class Tracer(TorchDispatchMode):
    """A mode in which operations on meta tensors are noted. `on_host`: meta stands for the CPU.

    What exists before is not counted: weights, and whatever else was made outside. `slack` is what the C library keeps
    beyond the blocks that are alive, as a share of those among them that it does not give back when they are freed.
    """

    def __init__(self, *, on_host: bool, slack: float = 0.0) -> None:
        super().__init__()
        self.on_host, self.slack = on_host, slack
        self.alive = 0
        self._kept = self._kept_small = 0  # of what is alive, in blocks that are not given back: usually, and at most
        self._peak = self._given_back = 0.0
        self._gives_back = False
        self._count = 1
        self._in_function = False
        self._known: dict[int, weakref.ref[Any]] = {}
        self._sums: Sums = _no_sums()
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

    def begin(self) -> None:
        """Go on as if nothing had been computed yet; what is alive stays so."""
        self._sums = _no_sums()
        self._peak = self._given_back = 0.0
        self._look()

    @property
    def peak(self) -> int:
        """The most bytes that were held at one time."""
        return int(self._peak)

    @property
    def given_back(self) -> int:
        """The same where freed memory goes back to the system all the while (`core.malloc.freed_at_once`)."""
        return int(self._given_back)

    # -- what `core.shapes` asks of a tracer ---------------------------------------------------------------------------

    @contextmanager
    def times(self, count: int) -> Iterator[None]:
        """Meanwhile each operation stands for so many."""
        before, self._count = self._count, self._count * count
        try:
            yield
        finally:
            self._count = before

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        """Meanwhile blocks of LARGE bytes or more go back to the system when they are freed."""
        before, self._gives_back = self._gives_back, True
        try:
            yield
        finally:
            self._gives_back = before

    def once(self, function: Callable[..., Tensor], args: Any, kwargs: Mapping[str, Any]) -> Tensor:
        """`function(*args, **kwargs)`; with shapes that were seen before, in any trace, not that, but what it took
        then."""
        key = self.on_host, self.slack, function, *map(_described, args), *map(_described, kwargs.values())
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
        key = self._gives_back, key
        if key not in known:
            result, known[key] = self._apart(function, args, kwargs)
            return result
        seen = known[key]
        if seen is None:
            return function(*args, **kwargs)
        usual, small = self._held
        self._peak = max(self._peak, usual + seen.peak)
        self._given_back = max(self._given_back, small + seen.given_back)
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
        peak, given_back, count, sums = self._peak, self._given_back, self._count, self._sums
        alive, (usual, small) = self.alive, self._held
        self._peak, self._given_back = usual, small
        self._count, self._sums = 1, _no_sums()
        try:
            result = function(*args, **kwargs)
            own = self._sums, self._peak - usual, self._given_back - small
        finally:
            self._count, self._sums = count, sums
            self._peak, self._given_back = max(peak, self._peak), max(given_back, self._given_back)
        self._add(own[0])
        new = self.alive - alive
        if isinstance(result, Tensor):
            repeats = new == result.untyped_storage().nbytes() == result.nbytes
        else:
            repeats = result is None and not new
        return result, _Seen(_described(result), own[1], own[2], own[0]) if repeats else None

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
                small = nbytes if nbytes < LARGE else 0
                kept = small if self._gives_back or nbytes >= HIGHEST else nbytes
                self._known[key] = weakref.ref(storage, self._when_freed(key, nbytes, kept, small))
                self.alive += nbytes
                self._kept += kept
                self._kept_small += small
        self._look()

    def _when_freed(self, key: int, nbytes: int, kept: int, small: int) -> Callable[[Any], None]:
        def freed(_: Any) -> None:
            self.alive -= nbytes
            self._kept -= kept
            self._kept_small -= small
            del self._known[key]

        return freed

    @property
    def _held(self) -> tuple[float, float]:
        """Bytes, with what the C library keeps: usually, and where it gives back what it can."""
        return self.alive + self.slack * self._kept, self.alive + self.slack * self._kept_small

    def _look(self, workspace: int = 0) -> None:
        usual, small = self._held
        self._peak = max(self._peak, usual + workspace)
        self._given_back = max(self._given_back, small + workspace)


_seen: dict[Any, _Seen | None] = {}


def _no_sums() -> Sums:
    return defaultdict(lambda: [0, 0.0, 0.0])


def _described(value: Any) -> Any:
    """Shape, strides and dtype of a tensor, a mapping's items; anything else as it is."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple((key, _described(each)) for key, each in value.items()) if isinstance(value, Mapping) else value


def trace(
    function: Callable[..., object], before: Callable[[], Any] = lambda: (), *, on_host: bool, slack: float = 0.0
) -> StageWork:
    """What `function(*before())` computes and holds, which works on the meta device; its result is held to the end.

    Without gradients. Tensors that exist already, weights above all, are not counted; what `before` makes is held, but
    is not part of what is computed. `slack` as a `Tracer` has it.
    """
    tracer = Tracer(on_host=on_host, slack=slack)
    with torch.no_grad(), traced_by(tracer), tracer:
        held = before()
        tracer.begin()
        alive = tracer.alive
        result = function(*held)
        kept = tracer.alive - alive
        del result
    return StageWork(tracer.peak, tracer.ops, kept, tracer.given_back, tracer.around)
