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
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.shapes import traced_by
from .kernels import Gives, Operation, kernel_of, operation_of
from .work import Ops, StageWork

Sums = dict[tuple[str, float], list[float]]
"""(kind, size) -> count, floating-point operations, bytes."""


class Tracer(TorchDispatchMode):
    """A mode in which operations on meta tensors are noted. `on_host`: meta stands for the CPU.

    What exists before is not counted: weights, and whatever else was made outside.
    """

    def __init__(self, *, on_host: bool) -> None:
        super().__init__()
        self.on_host = on_host
        self.alive = self.peak = 0
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
        self.peak, self._sums = self.alive, _no_sums()

    # -- what `core.shapes` asks of a tracer ---------------------------------------------------------------------------

    @contextmanager
    def times(self, count: int) -> Iterator[None]:
        """Meanwhile each operation stands for so many."""
        before, self._count = self._count, self._count * count
        try:
            yield
        finally:
            self._count = before

    def once(self, function: Callable[..., Tensor], args: Any, kwargs: Mapping[str, Any]) -> Tensor:
        """`function(*args, **kwargs)`; with shapes that were seen before not that, but what it took then."""
        key = self.on_host, function, *map(_described, args), *map(_described, kwargs.values())
        seen = _seen.get(key)
        if seen is None:
            seen = _seen[key] = self._apart(function, args, kwargs)
        (shape, strides, dtype), peak, sums = seen
        self.peak = max(self.peak, self.alive + peak)
        self._add(sums)
        result = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        self._hold(result)
        return result

    def _apart(self, function: Callable[..., Tensor], args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, int, Sums]:
        """What the function gives, as `_described`; its peak beyond what is alive; and what it computes."""
        outside = self.peak, self._count, self._sums
        before = self.peak = self.alive
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
        self.peak = max(self.peak, self.alive + workspace)
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
                self._known[key] = weakref.ref(storage, self._when_freed(key, nbytes))
                self.alive += nbytes
        self.peak = max(self.peak, self.alive)

    def _when_freed(self, key: int, nbytes: int) -> Callable[[Any], None]:
        def freed(_: Any) -> None:
            self.alive -= nbytes
            del self._known[key]

        return freed


_seen: dict[Any, tuple[Any, int, Sums]] = {}


def _no_sums() -> Sums:
    return defaultdict(lambda: [0, 0.0, 0.0])


def _described(value: Any) -> Any:
    """Shape, strides and dtype of a tensor; anything else as it is."""
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


def trace(function: Callable[..., object], before: Callable[[], Any] = lambda: (), *, on_host: bool) -> StageWork:
    """What `function(*before())` computes and holds, which works on the meta device; its result is held to the end.

    Without gradients. Tensors that exist already, weights above all, are not counted; what `before` makes is held, but
    is not part of what is computed.
    """
    tracer = Tracer(on_host=on_host)
    with torch.no_grad(), traced_by(tracer), tracer:
        held = before()
        tracer.begin()
        function(*held)
    return StageWork(tracer.peak, tracer.ops)
