"""A machine with one GPU, 'cuda:0', that only pretends: torch's FakeTensorMode, and what it leaves open.

Tensors have shapes, dtypes and devices, and no numbers. An operation on tensors of two devices raises as it would on a
GPU, so a tensor that was made on the wrong one is found where it meets the others. What depends on numbers is answered:
everything is finite, nothing is the same everywhere, files hold what memory holds, scalars are one. torch.jit and
torch.compile take fake tensors for their own; `fake_graphs` lets them record graphs of such tensors all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.unit.device import fake_graphs
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from leandiffusion.device import memory, pinning, streams
from leandiffusion.weights import read
from leandiffusion.weights.stored import StoredTensor

GPU = torch.device("cuda", 0)


class _Answers(TorchDispatchMode):
    """What a number is, when code asks for one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if fake_graphs.is_plain_number(args):  # a size, while torch.jit traces
            with _disable_current_modes():
                return func(*args, **(kwargs or {}))
        with fake_graphs.not_tracing():
            return self._answer(func, args, kwargs or {})

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is torch.ops.aten.equal.default:
            return args[0].shape == args[1].shape
        if func is torch.ops.aten._local_scalar_dense.default:
            answer = getattr(args[0], "answer", True)
            return answer if args[0].dtype == torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        if func is torch.ops.aten.convolution.default:  # the one operation whose devices the fake does not compare
            devices = {str(tensor.device) for tensor in args[:3] if tensor is not None}
            if len(devices) > 1:
                raise RuntimeError(f"a convolution's input, weight and bias are on several devices: {sorted(devices)}")
        return func(*args, **kwargs)


class _WithoutNumbers(TorchFunctionMode):
    """What torch does in C++ before any mode sees it, and on builds for CPUs cannot do for another device: indexing.
    Numbers that leave torch are zeros."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d and torch.jit.is_tracing():
            with self:
                return fake_graphs.product_for_convolution(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            return _index(*args)
        if func is Tensor.__setitem__:
            target, value = _index(args[0], args[1]), args[2]
            return _copy(target, value) if isinstance(value, Tensor) else target.fill_(value)
        if func is Tensor.copy_:
            return _copy(args[0], args[1])
        if func is Tensor.to:  # 'cuda' without an index means the current device, which C++ would ask for
            args = (
                args[0],
                *(GPU if str(a) == GPU.type else a for a in args[1:]),
            )
        if func is Tensor.numpy:
            assert args[0].device.type == "cpu", "only a tensor on the CPU has numbers for numpy"
            return np.zeros(tuple(args[0].shape), np.dtype(str(args[0].dtype).removeprefix("torch.")))
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.any, torch.any):
            result.answer = False
        return result


def _copy(target: Tensor, source: Tensor) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.aten.copy_.default(target, source)


def _index(tensor: Tensor, key: Any) -> Tensor:
    """`tensor[key]` by operations that modes see."""
    aten = torch.ops.aten
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(k is Ellipsis for k in keys):
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        used = sum(1 for k in keys if k is not None and k is not Ellipsis)
        keys[at : at + 1] = [slice(None)] * (tensor.dim() - used)
    dim, chosen = 0, {}
    for k in keys:
        if k is None:
            tensor, dim = aten.unsqueeze(tensor, dim), dim + 1
        elif isinstance(k, slice):
            tensor, dim = aten.slice(tensor, dim, k.start, k.stop, 1 if k.step is None else k.step), dim + 1
        elif isinstance(k, int):
            tensor = aten.select(tensor, dim, k)
        else:
            chosen[dim], dim = torch.as_tensor(k), dim + 1
    return aten.index(tensor, [chosen.get(d) for d in range(max(chosen) + 1)]) if chosen else tensor


class _Streams:
    """Streams of a device on which nothing runs; who uses them is written down."""

    def __init__(self, device: torch.device) -> None:
        self.names = iter(range(1, 100))

    def new(self) -> str:
        return f"stream {next(self.names)}"

    def current(self) -> str:
        return "stream 0"

    def on(self, stream: str) -> Any:
        return nullcontext()

    def mark(self, stream: str) -> str:
        return f"event of {stream}"

    def wait(self, stream: str, event: str) -> None:
        assert event.startswith("event of ")

    def keep(self, memory: Tensor, stream: str) -> None:
        assert memory.device == GPU

    def finish(self, stream: str) -> None:
        return None


@contextmanager
def fake_gpu(capability: tuple[int, int] = (9, 0)) -> Iterator[FakeTensorMode]:
    """Inside it this machine has a GPU of that capability, and no tensor has numbers."""
    accelerator = {
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "current_device_index": lambda: 0, "device_count": lambda: 1, "synchronize": lambda device=None: None,
    }  # fmt: skip
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # of a scheduler made before
    runtime = SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: None)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as modes:
        for name, answer in accelerator.items():
            patch.setattr(torch.accelerator, name, answer)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        patch.setattr(pinning, "_runtime", lambda: runtime)
        patch.setattr(pinning, "staging_buffer", lambda nbytes, device: torch.empty(nbytes, dtype=torch.uint8))
        patch.setattr(streams, "AcceleratorStreams", _Streams)
        patch.setattr(memory, "_started", lambda: None)
        patch.setattr(read, "_fill", lambda *_: None)
        patch.setattr(nn.Module, "_apply", _apply)
        patch.setattr(torch.backends.cudnn, "is_available", lambda: True)
        patch.setattr(torch, "compile", fake_graphs.compile_outside(torch.compile))
        patch.setattr(torch.jit, "save", fake_graphs.save_graph)
        patch.setattr(torch.jit, "load", fake_graphs.load_graph)
        patch.setattr(fake_graphs, "recorded", [])
        patch.setattr(StorageWeakRef, "__init__", _refer)
        modes.enter_context(torch.jit.optimized_execution(False))  # whose passes compare the numbers of constants
        modes.enter_context(mode)
        modes.enter_context(_Answers())
        modes.enter_context(_WithoutNumbers())
        yield mode


def _refer(self: StorageWeakRef, storage: Any) -> None:
    """In place of torch's, which gives the reference back when a collection of garbage gets to it. For storages without
    memory it does so once too often: the process then ends at some later allocation. These few bytes stay instead."""
    self.cdata = storage._weak_ref()
    self._free_weak_ref = lambda cdata: None  # pyright: ignore[reportAttributeAccessIssue]


def _apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`Module.to` and its like: torch's own exchanges what is in a tensor, which a fake one does not allow."""
    for module in self.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    moved = fn(tensor)
                    table[name] = nn.Parameter(moved, requires_grad=False) if table is module._parameters else moved
    return self


def without_numbers(network: nn.Module, device: torch.device) -> None:
    """Put a network onto the fake device, or on the CPU beside it. Its tensors want no gradients, whose nodes would ask
    for the GPU."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # with those that were there, whose `id` another would get
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    _, table[name] = seen.setdefault(id(tensor), (tensor, _fake(tensor, device)))


def _fake(tensor: Tensor, device: torch.device) -> Tensor:
    held = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(held, requires_grad=False) if isinstance(tensor, nn.Parameter | StoredTensor) else held
