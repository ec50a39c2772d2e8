"""Graphs that torch.jit and torch.compile record of tensors without numbers.

torch.jit records an operation above the modes of Python, and torch.compile refuses to work below one. So tracing is
paused while a mode answers, and what is compiled runs outside the modes: tensors of FakeTensorMode compare devices
there too, once while torch.compile follows them through the code, and once when its graph runs, inside the modes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _pop_mode_temporarily
from torch.utils._python_dispatch import _disable_current_modes

_TRACER = torch._C._parse_dispatch_key("Tracer")

recorded: list[Any] = []
"""Graphs that torch.jit traced or torch.compile made, since the fake began."""


@contextmanager
def not_tracing() -> Iterator[None]:
    """While torch.jit traces, a tensor's sizes are tensors, which the fake cannot compute with."""
    state = torch._C._get_tracing_state()
    if state is None:
        yield
        return
    with torch._C._SetExcludeDispatchKeyGuard(_TRACER, False):
        torch._C._set_tracing_state(None)
        try:
            yield
        finally:
            torch._C._set_tracing_state(state)


def is_plain_number(args: Sequence[Any]) -> bool:
    """Whether an operation is on whole numbers alone that have their values: on sizes, while torch.jit traces."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return bool(tensors) and all(type(t) is Tensor and not t.dim() and not t.is_floating_point() for t in tensors)


def product_for_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """A convolution by operations that torch.jit records: its own it records below the modes, where none arrives."""
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    patches = padded.unfold(2, weight.shape[2], stride[0]).unfold(3, weight.shape[3], stride[1])
    y = torch.einsum("bchwij,ocij->bohw", patches, weight)
    return y if bias is None else y + bias[:, None, None]


def save_graph(graph: Any, file: Any, _extra_files: dict[str, str]) -> None:
    """For torch.jit.save, which wants numbers: the file holds the graph's place in `recorded`."""
    file.write(str(len(recorded)).encode())
    recorded.append((graph, _extra_files))


def load_graph(file: Any, map_location: torch.device, _extra_files: dict[str, str]) -> Any:
    """For torch.jit.load: the graph with its weights there."""
    graph, extra = recorded[int(file.read())]
    _extra_files.update(extra)
    for name, parameter in list(graph.named_parameters()):
        path, _, leaf = name.rpartition(".")
        setattr(graph.get_submodule(path), leaf, nn.Parameter(parameter.to(map_location), requires_grad=False))
    return graph


def compile_outside(compile: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile whose functions run outside the modes."""

    def compile_one(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        inner = compile(function, **options)
        run_node = torch._dynamo.utils.run_node

        def call(*args: Any, **kwargs: Any) -> Any:
            def run_indexed(*node: Any) -> Any:
                with indexing:
                    return run_node(*node)

            with (
                pytest.MonkeyPatch.context() as patch,
                _pop_mode_temporarily() as indexing,
                _disable_current_modes() as others,
            ):
                patch.setattr(torch._dynamo.utils, "run_node", run_indexed)  # what follows the tensors through the code
                _outside[:] = [*reversed(others), indexing]
                return inner(*args, **kwargs)

        return call

    return compile_one


_outside: list[Any] = []  # modes in which graphs run


def keep(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A backend of torch.compile that runs the graph as it is, inside the modes."""
    recorded.append(graph)

    def run(*args: Any) -> Any:
        with ExitStack() as modes:
            for mode in _outside:
                modes.enter_context(mode)
            return graph(*args)

    return run
