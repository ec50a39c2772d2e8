"""What code computes for real, noted as the tracer notes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from leandiffusion.plan.kernels import Gives, operation_of
from leandiffusion.plan.trace import Tracer
from leandiffusion.plan.work import Ops


class _Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.tracer = Tracer(on_host=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = operation_of(func)
        if operation.gives is not Gives.VIEW and operation.moves:
            self.tracer.note(operation, args, kwargs or {}, result)
        return result


def real_ops(function: Callable[[], object]) -> tuple[Ops, ...]:
    """The operations of `function()`, which runs on the CPU."""
    with torch.no_grad(), _Watching() as watching:
        function()
    return watching.tracer.ops
