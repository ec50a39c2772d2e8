"""Networks built without weights: parameters on the meta device, computed buffers with their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

N = TypeVar("N", bound=nn.Module)

# Constructors of storage that is to be filled by a checkpoint. arange, zeros, ones, tensor and the like stay real:
# they make position ids, causal masks, frequency tables.
_UNFILLED = (torch.empty, torch.rand, torch.randn, torch.normal, torch.empty_strided)


class _WeightsOnMeta(TorchFunctionMode):
    """A mode in which weights get no memory, and initialising them is a no-op that draws no random numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _UNFILLED:
            kwargs["device"] = "meta"
            kwargs.pop("generator", None)
        if getattr(func, "__module__", None) == nn.init.__name__:
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:  # torch would import its compiler to do nothing
                return tensor
        return func(*args, **kwargs)


def build_empty(build: Callable[[], N]) -> N:
    """Run a network's constructor with its weights on the meta device.

    Buffers that the constructor computes hold their values, on the CPU: plain `torch.device("meta")` would lose them.
    """
    with torch.device("cpu"), _WeightsOnMeta():
        network = build()
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # weights made by ones or zeros; ties between them stay
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None and not weight.is_meta:
                empty = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
                module._parameters[name] = made.setdefault(id(weight), (weight, empty))[1]
    return network


def put_tensor(network: nn.Module, names: Sequence[str], tensor: Tensor) -> Tensor:
    """Make `tensor` the parameter or buffer under all of `names`; returns a tensor with the previous values.

    A parameter that had values stays the same object, so that references to it see the new ones.
    """
    path, _, leaf = names[0].rpartition(".")
    module = network.get_submodule(path)
    before = module._parameters.get(leaf)
    if before is None:
        former = module._buffers[leaf]
        _put(network, names, "_buffers", tensor)
        return former  # type: ignore[return-value]
    weight = as_parameter(tensor, before.requires_grad and tensor.is_floating_point())
    if not before.is_meta and swap(before, weight):
        _put(network, names, "_parameters", before)
        return weight
    _put(network, names, "_parameters", weight)
    return before


def as_parameter(tensor: Tensor, requires_grad: bool) -> Tensor:
    """`tensor` as a parameter; an object of a tensor subclass is marked as one itself.

    nn.Parameter would detach it, and at the first operation on such a class torch imports its distributed tensors and
    sympy: 41 MB.
    """
    if type(tensor) in (Tensor, nn.Parameter):
        return nn.Parameter(tensor, requires_grad)
    tensor._is_param = True  # type: ignore[attr-defined]  # what isinstance(…, nn.Parameter) asks for
    return tensor.requires_grad_(requires_grad)


def swap(one: Tensor, other: Tensor) -> bool:
    """Swap the contents of two tensor objects in place. False where that cannot be done: something holds a weak
    reference to one of them, or a running operation uses it."""
    try:
        torch.utils.swap_tensors(one, other)
    except RuntimeError:
        return False
    return True


def _put(network: nn.Module, names: Sequence[str], table: str, tensor: Tensor) -> None:
    for name in names:
        path, _, leaf = name.rpartition(".")
        getattr(network.get_submodule(path), table)[leaf] = tensor


def tensor_bytes(network: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of parameters and buffers, shared ones once; as if floating point were `dtype` when one is given."""
    tensors: Mapping[int, Tensor] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    sizes = (t.numel() * (dtype if dtype and t.is_floating_point() else t.dtype).itemsize for t in tensors.values())
    return sum(sizes)
