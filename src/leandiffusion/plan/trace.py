"""Runs code on the meta device and tells what it would compute, and the most bytes that it would hold at one time.

Followed are storages, not tensors: views share theirs, and one is alive until the last tensor on it is gone, which is
when the real one would be freed, since the same code runs. What kernels take inside, which no dispatch sees, is added
for the moment of each operation (`plan.kernels`).
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.malloc import HIGHEST, freed_at_once
from ..core.shapes import traced_by
from .kernels import Gives, Operation, kernel_of, operation_of
from .work import Ops, StageWork

Sums = dict[tuple[str, float], list[float]]
"""(kind, size) -> count, floating-point operations, bytes."""


class Tracer(TorchDispatchMode):
    """A mode in which operations on meta tensors are noted. `on_host`: meta stands for the CPU.

    What exists before is not counted: weights, and whatever else was made outside. `slack` is what the C library keeps
    beyond the blocks that are alive, as a share of those among them that it does not give back when they are freed.
    """

    def __init__(self, *, on_host: bool, slack: float = 0.0) -> None:
        super().__init__()
        self.on_host, self.slack = on_host, slack
        self.alive = self.peak = 0
        self._kept = 0  # of what is alive, in blocks that are not given back
        self._large = HIGHEST
        self._count = 1
        self._known: dict[int, weakref.ref[Any]] = {}
        self._sums: Sums = _no_sums()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, symbolic algebra with it, to keep that from looking into this mode."""
        return False

    @property
    def ops(self) -> tuple[Ops, ...]:
        """What was computed, by kind and size; the largest share of each kind first."""
        found = [Ops(kind, size, int(n), flops, nbytes) for (kind, size), (n, flops, nbytes) in self._sums.items()]
        return tuple(sorted(found, key=lambda ops: (ops.kind, -ops.flops, -ops.nbytes)))

    def begin(self) -> None:
        """Go on as if nothing had been computed yet; what is alive stays so."""
        self._sums = _no_sums()
        self.peak = 0
        self._look()

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
    def giving_back(self, size: int) -> Iterator[None]:
        """Meanwhile blocks of that many bytes or more go back to the system when they are freed."""
        before, self._large = self._large, min(size, self._large)
        try:
            yield
        finally:
            self._large = before

    def once(self, function: Callable[..., Tensor], args: Any, kwargs: Mapping[str, Any]) -> Tensor:
        """`function(*args, **kwargs)`; with shapes that were seen before not that, but what it took then."""
        key = self.on_host, self.slack, self._large, function, *map(_described, args), *map(_described, kwargs.values())
        seen = _seen.get(key)
        if seen is None:
            seen = _seen[key] = self._apart(function, args, kwargs)
        (shape, strides, dtype), peak, sums = seen
        self.peak = max(self.peak, self._held + peak)
        self._add(sums)
        result = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        self._hold(result)
        return result

    def _apart(self, function: Callable[..., Tensor], args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, int, Sums]:
        """What the function gives, as `_described`; its peak beyond what is alive; and what it computes."""
        outside = self.peak, self._count, self._sums
        before = self.peak = self._held
        self._count, self._sums = 1, _no_sums()
        try:
            result = function(*args, **kwargs)
            return _described(result), self.peak - before, self._sums
        finally:
            self.peak, self._count, self._sums = outside

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
        else:
            result = kwargs["out"] if gives is Gives.OUT else args[0]
        if operation.moves:
            self.note(operation, args, kwargs, result)
        return result

    def note(self, operation: Operation, args: Any, kwargs: Any, result: Any) -> None:
        """Count what the operation computed and moved, and what it took meanwhile."""
        kind, flops, nbytes, workspace = kernel_of(operation, args, kwargs, result, on_host=self.on_host)
        self._look(workspace)
        size = nbytes if kind == "other" else flops
        self._add({(kind, float(f"{size:.1e}")): [1, flops, nbytes]})

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
                kept = nbytes if nbytes < self._large else 0
                self._known[key] = weakref.ref(storage, self._when_freed(key, nbytes, kept))
                self.alive += nbytes
                self._kept += kept
        self._look()

    def _when_freed(self, key: int, nbytes: int, kept: int) -> Callable[[Any], None]:
        def freed(_: Any) -> None:
            self.alive -= nbytes
            self._kept -= kept
            del self._known[key]

        return freed

    @property
    def _held(self) -> int:
        return self.alive + int(self.slack * self._kept)

    def _look(self, workspace: int = 0) -> None:
        self.peak = max(self.peak, self._held + workspace)


_seen: dict[Any, tuple[Any, int, Sums]] = {}


def _no_sums() -> Sums:
    return defaultdict(lambda: [0, 0.0, 0.0])


def _described(value: Any) -> Any:
    """Shape, strides and dtype of a tensor; anything else as it is."""
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


def trace(
    function: Callable[..., object],
    before: Callable[[], Any] = lambda: (),
    *,
    on_host: bool,
    slack: float = 0.0,
    given_back: bool = False,
) -> StageWork:
    """What `function(*before())` computes and holds, which works on the meta device; its result is held to the end.

    Without gradients. Tensors that exist already, weights above all, are not counted; what `before` makes is held, but
    is not part of what is computed. `slack` as a `Tracer` has it; `given_back`: `freed_at_once` is on (`core.malloc`).
    """
    tracer = Tracer(on_host=on_host, slack=slack)
    giving = freed_at_once() if given_back else nullcontext()
    with torch.no_grad(), traced_by(tracer), giving, tracer:
        held = before()
        tracer.begin()
        alive = tracer.alive
        result = function(*held)
        kept = tracer.alive - alive
        del result
    return StageWork(tracer.peak, tracer.ops, kept)
