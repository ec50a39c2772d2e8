"""Layers that LoRA adapters add to: weights stay as they are, what the factors make of the input is added.

A layer becomes one of these while adapters are on it, and has its own class again afterwards: it stays the same object,
with the same weights. Factors are buffers of the layer, so that they travel and move with its weights, and no part of
`state_dict`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device.capabilities import is_widened
from .convolution import Conv2d
from .factors import Kind
from .linear import Linear

_call_scale: ContextVar[float] = ContextVar("scale of all LoRA adapters", default=1.0)


def call_scale() -> float:
    """What `scaled` said last, in this thread."""
    return _call_scale.get()


@contextmanager
def scaled(scale: float) -> Iterator[None]:
    """Have all adapters weigh `scale` times as much meanwhile, in this thread."""
    token = _call_scale.set(scale)
    try:
        yield
    finally:
        _call_scale.reset(token)


@dataclass(frozen=True)
class Branch:
    """What one adapter adds to a layer. `buffers`: the layer's buffer by the factor's name."""

    kind: Kind
    buffers: Mapping[str, str]
    scale: float


class Adapted(nn.Module):
    """Mixin of layers that adapters add to."""

    plain: ClassVar[type[nn.Module]]
    """The class that the layer has without adapters."""

    branches: tuple[Branch, ...] = ()

    def add_branches(self, x: Tensor, y: Tensor) -> Tensor:
        """y, the layer's own output for x, with what the adapters add."""
        # A compiler cannot look into context variables; pipelines refuse scales of calls while it is on.
        overall = 1.0 if torch.compiler.is_compiling() else call_scale()
        wide = is_widened(x)
        x = x.float() if wide else x
        for branch in self.branches:
            if scale := overall * branch.scale:
                factors = {factor: getattr(self, buffer) for factor, buffer in branch.buffers.items()}
                factors = {name: factor.float() for name, factor in factors.items()} if wide else factors
                y = branch.kind.add(y, x, self, factors, scale)  # type: ignore[arg-type]
        return y

    def extra_repr(self) -> str:
        """The layer's own, and the scales of its adapters."""
        return f"{super().extra_repr()}, lora={[branch.scale for branch in self.branches]}"


class LoraLinear(Adapted, Linear):
    """One of this library's linear layers that adapters add to."""

    plain = Linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., ins) -> (..., outs)."""
        return self.add_branches(x, Linear.forward(self, x))


class LoraPlainLinear(Adapted, nn.Linear):
    """One of torch's linear layers that adapters add to."""

    plain = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., ins) -> (..., outs)."""
        return self.add_branches(x, nn.Linear.forward(self, x))


class LoraConv2d(Adapted, Conv2d):
    """One of this library's convolutions that adapters add to."""

    plain = Conv2d

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        """As `Conv2d.forward`."""
        y = Conv2d.forward(self, x, double)
        return self.add_branches(F.interpolate(x, scale_factor=2.0, mode="nearest") if double else x, y)


class LoraPlainConv2d(Adapted, nn.Conv2d):
    """One of torch's convolutions that adapters add to."""

    plain = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_out, H', W')."""
        return self.add_branches(x, nn.Conv2d.forward(self, x))


_ADAPTED = {cls.plain: cls for cls in (LoraLinear, LoraPlainLinear, LoraConv2d, LoraPlainConv2d)}


def can_adapt(layer: nn.Module) -> bool:
    """Whether adapters can be put on a layer of this kind."""
    return type(layer) in _ADAPTED or isinstance(layer, Adapted)


def make_adapted(layer: nn.Module) -> None:
    """Make it a layer that adapters add to; none does yet."""
    if not isinstance(layer, Adapted):
        layer.__class__ = _ADAPTED[type(layer)]


def put_on(layer: nn.Module, added: Sequence[tuple[Kind, Mapping[str, Tensor], float]]) -> None:
    """Let the layer add these, factors and scale of each, in place of what it added before; nothing makes it plain."""
    for branch in layer.branches if isinstance(layer, Adapted) else ():
        for buffer in branch.buffers.values():
            layer._buffers.pop(buffer, None)
            layer._non_persistent_buffers_set.discard(buffer)
    if not added:
        if isinstance(layer, Adapted):
            layer.__dict__.pop("branches", None)
            layer.__class__ = layer.plain  # pyright: ignore[reportAttributeAccessIssue]
        return
    make_adapted(layer)
    branches = []
    for number, (kind, factors, scale) in enumerate(added):
        buffers = {factor: f"lora_{number}_{factor}" for factor in factors}
        for factor, buffer in buffers.items():
            layer.register_buffer(buffer, factors[factor], persistent=False)
        branches.append(Branch(kind, buffers, scale))
    layer.branches = tuple(branches)  # type: ignore[assignment]


def adapted_layers(network: nn.Module) -> dict[str, Adapted]:
    """The layers of the network that adapters add to, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Adapted)}


class Added:
    """What adapters add to a network now, as graphs of it need to tell: made anew whenever that changes."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = adapted_layers(network)
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """Of factors and scales, for files that outlive the process."""
        if self._digest is None:
            whole = hashlib.sha256()
            for name, layer in self._layers.items():
                whole.update(f"{name} {[branch.scale for branch in layer.branches]}".encode())
                for branch in layer.branches:
                    for buffer in branch.buffers.values():
                        numbers = layer._buffers[buffer]
                        whole.update(numbers.detach().float().cpu().contiguous().numpy().tobytes())  # type: ignore[union-attr]
            self._digest = whole.hexdigest()
        return self._digest


@dataclass(frozen=True)
class Scaled:
    """What adapters add, at the scale of the running call; as text, the numbers that this comes to."""

    added: Added
    scale: float

    def __str__(self) -> str:
        return f"{self.added.digest} x {self.scale}"


class WithLora(nn.Module):
    """Mixin of networks that say what adapters add to them."""

    _added: Added | None = None
    _adapters: Any = None
    """The adapters that were loaded, whichever are on: `lora.adapters.Adapters`."""

    def factors_moved(self) -> None:
        """Note that factors were moved or cast with the weights: the next call takes them from their files again."""
        if self._adapters is not None:
            self._adapters.placed = None

    @property
    def lora(self) -> Scaled | None:
        """What adapters add to this network in this thread's call; None where they add nothing."""
        return None if self._added is None else Scaled(self._added, call_scale())
