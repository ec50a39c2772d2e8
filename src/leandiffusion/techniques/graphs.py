"""Graphs that torch.jit records of a UNet: made, written, read, and given the UNet's own weights."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn

from ..core.wording import dtype_name
from ..modules.unet import UNet2DConditionModel

KEY = "leandiffusion.json"
"""The file inside a graph's that says what it was made for."""

_TRACER_WARNING: Any = torch.jit.TracerWarning  # pyright: ignore[reportPrivateImportUsage]


class _Flat(nn.Module):
    """The UNet as a function of tensors alone, named in order, as a trace needs it."""

    def __init__(self, unet: UNet2DConditionModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.unet = unet
        self.names = names
        self.train(unet.training)

    def forward(self, *inputs: Tensor) -> Tensor:
        return run(self.unet, dict(zip(self.names, inputs, strict=True)))


def run(unet: nn.Module, inputs: Mapping[str, Tensor], **others: Any) -> Tensor:
    own = ("sample", "timestep", "encoder_hidden_states", "timestep_cond")
    direct = {name: value for name, value in inputs.items() if name in own}
    added = {name: value for name, value in inputs.items() if name not in own}
    return unet(**direct, added_cond_kwargs=added or None, return_dict=False, **others)[0]


def describe(unet: UNet2DConditionModel, inputs: Mapping[str, Tensor]) -> str:
    """Everything that a graph depends on, as JSON. Not the weights: it has none of its own."""
    layers = [str(getattr(module, name)) for module, name in switched(unet)]
    return json.dumps(
        {
            "inputs": {name: [list(x.shape), str(x.dtype)] for name, x in inputs.items()},
            "weights": [str(unet.dtype), unet.device.type],
            "network": _digest([sorted((k, str(v)) for k, v in dict(unet.config).items()), layers]),
            "torch": str(torch.__version__),
        }
    )


def switched(unet: nn.Module) -> list[tuple[nn.Module, str]]:
    """What can be switched on the UNet, and changes what a trace records: kernels of attention, FreeU, LoRA."""
    names = ("backend", "freeu", "lora")
    return [(module, name) for module in unet.modules() for name in names if hasattr(module, name)]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def shapes_of(key: str) -> str:
    inputs: dict[str, Any] = json.loads(key)["inputs"]
    return ", ".join(f"{name} {tuple(shape)} {dtype_name(dtype)}" for name, (shape, dtype) in inputs.items())


@dataclass(eq=False)
class Kept:
    """A graph without weights, but for as long as one of `users` runs it."""

    graph: Any
    users: WeakSet[Any] = field(default_factory=WeakSet)


kept_graphs: WeakKeyDictionary[nn.Module, dict[str, Kept]] = WeakKeyDictionary()
"""Graphs of each UNet by what they were made for. torch.jit never frees all of what tracing and running took, so that
what was made once is used again."""


def record(unet: UNet2DConditionModel, key: str, inputs: Mapping[str, Tensor]) -> bytes:
    """Trace the UNet for inputs like these; the graph as torch.jit writes it, without weights.

    What runs is a twin whose weights are one number each, stretched: torch.jit holds on to what it traced, and other
    threads go on using the UNet.
    """
    stretched = {
        id(p): nn.Parameter(p.detach().new_zeros(1).expand(p.shape), requires_grad=False) for p in unet.parameters()
    }
    flat = _Flat(copy.deepcopy(unet, stretched), tuple(inputs))
    memory = io.BytesIO()  # writing to a full disk itself, torch ends the process
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", _TRACER_WARNING)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        graph = torch.jit.trace(flat, tuple(inputs.values()), check_trace=False)
        torch.jit.save(graph, memory, _extra_files={KEY: key})
    return memory.getvalue()


def load(source: Any, device: torch.device) -> tuple[Any, str]:
    """A graph and the key that it was made for. RuntimeError and others where `source` holds none."""
    found: dict[str, Any] = {KEY: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        graph = torch.jit.load(source, map_location=device, _extra_files=found)
    return graph, found[KEY].decode() if isinstance(found[KEY], bytes) else found[KEY]


def check_weights(graph: Any, unet: nn.Module) -> None:
    """RuntimeError when the graph is of another network."""
    own = {f"unet.{name}" for name, _ in unet.named_parameters(remove_duplicate=False)}
    if lacking := dict(graph.named_parameters()).keys() - own:
        raise RuntimeError(f"it has a weight {min(lacking)!r} that this UNet lacks")


def give_weights(graph: Any, own: Mapping[str, nn.Parameter]) -> None:
    """Let the graph hold these very parameters, so that it sees what becomes of them."""
    for name, _ in list(graph.named_parameters()):
        *path, leaf = name.split(".")
        holder = graph._c
        for part in path:
            holder = holder.getattr(part)
        holder.setattr(leaf, own[name.removeprefix("unet.")])


def let_go(kept: Kept, user: ref[Any]) -> None:
    if (traced := user()) is not None:
        kept.users.discard(traced)
    if not list(kept.users):  # its length may still count one that is just going
        empty = {
            name.removeprefix("unet."): nn.Parameter(p.detach().new_zeros(1).expand(p.shape), requires_grad=False)
            for name, p in kept.graph.named_parameters()
        }
        give_weights(kept.graph, empty)
