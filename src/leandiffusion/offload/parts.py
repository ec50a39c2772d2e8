"""Heavy layers in parts: some rows of the weight travel and give their outputs, then the next.

Each output of a linear layer or a convolution depends on its own row of the weight and no other, so that parts change
nothing but rounding, and how much is in memory at a time: the largest of Stable Diffusion 1.5's UNet takes 113 MiB in
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.repeats import same_inputs
from ..core.shapes import alike, is_channels_last
from ..weights.stored import StoredTensor
from .units import Table, Unit, Weight

PART_BYTES = 16 << 20
"""Of a layer, that travel at a time. Smaller ones save little beside what a step holds, and compute more slowly."""

MULTIPLE = 32
"""Of rows that a part has, but for the last: matrix products are faster with whole vectors and blocks."""

_TORCHS: dict[type[nn.Module], int] = {nn.Linear: -1, nn.Conv2d: -3}


def output_dim(module: nn.Module) -> int | None:
    """The dimension of the module's output, from the last, along which each entry depends on its own row of weight and
    bias alone; None where there is no such. A class says so by an attribute of this name, but not for subclasses."""
    kind, own = type(module), vars(module).get("forward")
    dim = vars(kind).get("output_dim", _TORCHS.get(kind))
    is_kinds = own is None or getattr(own, "only_moves", False)
    return dim if is_kinds and getattr(module, "groups", 1) == 1 else None


def in_parts(units: Iterable[Unit], limit: int) -> Iterator[Unit]:
    """The units, in place of each that takes more than `limit` bytes its parts of at most so many."""
    for unit in units:
        rows = _rows(unit) if unit.nbytes > limit else 0
        if rows < 2 * MULTIPLE:
            yield unit
            continue
        step = max(limit * rows // unit.nbytes // MULTIPLE, 1) * MULTIPLE
        for number, begin in enumerate(range(0, rows, step)):
            span = begin, min(begin + step, rows)
            part = Unit(f"{unit.name}:{number}", [Weight(each.owners, each.master, span) for each in unit.weights])
            part.add(unit.modules[0])
            yield part


def _rows(unit: Unit) -> int:
    """Of the weight of the one layer that the unit is; 0 where it cannot be computed in parts."""
    modules, masters = unit.modules, [weight.master for weight in unit.weights]
    if len(modules) != 1 or output_dim(modules[0]) is None:
        return 0
    travelling = {name for weight in unit.weights for _, name in weight.owners}
    there = {name for name, parameter in modules[0]._parameters.items() if parameter is not None}
    transposed = any(isinstance(master, StoredTensor) and master.entry.transpose for master in masters)
    if transposed or travelling != there or not {"weight"} <= there <= {"weight", "bias"}:
        return 0  # a part's rows of one would meet all rows of the other
    return len(masters[0])


def joined(parts: Iterable[Tensor], dim: int, size: int) -> Tensor:
    """The parts of an output one behind the other, `size` of them along `dim`. One part is in memory besides."""
    out, begin = None, 0
    for part in parts:
        if out is None:
            shape = list(part.shape)
            shape[dim] = size
            form = torch.channels_last if is_channels_last(part) else torch.contiguous_format
            out = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=form)
        out.narrow(dim, begin, part.shape[dim]).copy_(part)
        begin += part.shape[dim]
        del part
    assert out is not None
    return out


def computed_in_parts(module: nn.Module, limit: int, forward: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
    """What `forward(*args, **kwargs)` of the module gives, in the parts that travel at a time. For weights that are
    where they are used: without numbers, to learn what it takes."""
    weights = [Weight([(module._parameters, n)], p) for n, p in module._parameters.items() if p is not None]
    whole = Unit("", weights)
    whole.add(module)
    parts = list(in_parts([whole], limit))
    dim = output_dim(module)
    if dim is None or len(parts) == 1:
        return forward(*args, **kwargs)
    with same_inputs():
        return joined((_with(part, forward, args, kwargs) for part in alike(parts)), dim, _rows(whole))


def _with(part: Unit, forward: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
    held = [(table, name, weight) for weight in part.weights for table, name in weight.owners]
    tensors = [weight.alike(weight.rows_of(weight.master.detach())) for _, _, weight in held]
    return run_with(held, tensors, forward, args, kwargs)


def run_with(
    held: Sequence[tuple[Table, str, Weight]], tensors: Sequence[Tensor], forward: Callable[..., Any], args: Any,
    kwargs: Any,
) -> Any:  # fmt: skip
    """`forward(*args, **kwargs)` of a module that holds the tensors meanwhile, and its masters afterwards."""
    try:
        for (table, name, _), tensor in zip(held, tensors, strict=True):
            table[name] = tensor
        return forward(*args, **kwargs)
    finally:
        for (table, name, weight), tensor in zip(held, tensors, strict=True):
            if table.get(name) is tensor:  # and not replaced by the forward itself
                table[name] = weight.master
