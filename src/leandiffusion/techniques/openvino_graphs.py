"""OpenVINO's graphs of one network: which calls they fit, made once for each shape, and torch's weights given up."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from ..attention import backends
from ..core.aside import aside
from ..core.fork import Lock
from ..core.notices import warn
from ..device.openvino import describe_engine, is_lost, reason
from ..modules.openvino import REVISION, Graph, write_graph
from ..modules.processors import CustomProcessor, attention_layers
from ..modules.unet import UNet2DConditionModel, UNet2DConditionOutput
from ..modules.unet_time import Waves
from ..weights.load import origin_of
from ..weights.residence import read_weights, release_to_disk, tensors_of
from ..weights.stored import StoredTensor, numbers_of

COMPUTED = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of networks that are converted."""

MOST_KEPT = 2
"""Graphs of one network: two sizes of picture, or with and without guidance. Each has the weights once."""


class Graphs:
    """Stands for the forward of a network, or of that part whose parameters' names begin with `prefix`.

    `inputs_of(module, *args, **kwargs)` gives the tensors of a call by name, or None for one that no graph fits.
    """

    def __init__(
        self, network: nn.Module, prefix: str, inputs_of: Callable[..., Call | None], folder: Path | None
    ) -> None:
        self._network = ref(network)
        self.prefix, self.inputs_of, self.folder = prefix, inputs_of, folder
        self._graphs: dict[str, Graph] = {}
        self._weights: Any = None  # as they were when the graphs were made
        self._lock = Lock()

    def run(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The call's result, by the graph that fits it, or by torch."""
        call = None if _is_torchs(module) else self.inputs_of(module, *args, **kwargs)
        if call is None:
            return forward(*args, **kwargs)
        return call.result(self._graph(module, call)(list(call.inputs.values())))

    def let_go(self) -> None:
        """Drop the graphs. The stack loads the weights that are on disk."""
        self._graphs.clear()

    def _graph(self, module: nn.Module, call: Call) -> Graph:
        shapes = json.dumps([[name, list(x.shape), str(x.dtype)] for name, x in call.inputs.items()])
        key = f"{shapes} {torch.get_num_threads()} {_switched(module)}"
        with self._lock:
            now = _look(module)
            if now != self._weights:
                self._graphs.clear()
            if key not in self._graphs:
                graph = self._made(module, call, shapes)
                for oldest in list(self._graphs)[: len(self._graphs) - MOST_KEPT + 1]:
                    del self._graphs[oldest]
                self._graphs[key] = graph
                self._weights = _look(module)
            self._graphs[key] = graph = self._graphs.pop(key)  # the last one used is the last to go
        return graph

    def _made(self, module: nn.Module, call: Call, shapes: str) -> Graph:
        network = self._network()
        read_weights([] if network is None else [network])
        dtype = next(iter(call.inputs.values())).dtype
        if self.folder is None:
            with tempfile.TemporaryDirectory(prefix="leandiffusion-", ignore_cleanup_errors=True) as folder:
                write_graph(Path(folder) / "graph", _twin(module), call.function, list(call.inputs.values()), dtype)
                self._give_up_weights(module)
                return Graph(Path(folder) / "graph", dtype)
        about = [REVISION, shapes, _switched(module), _digest(module), *describe_engine(dtype), repr(module)]
        name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
        file = self.folder / f"{self.prefix or 'unet.'}{name}.openvino"
        if file.exists():
            self._give_up_weights(module)
            try:
                return Graph(file, dtype)
            except RuntimeError as error:
                warn(f"{file} is not a graph of OpenVINO's ({reason(error)}): making it anew.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with aside(file) as place:
            write_graph(place, _twin(module), call.function, list(call.inputs.values()), dtype)
            os.replace(place, file)
        self._give_up_weights(module)
        return Graph(file, dtype)

    def _give_up_weights(self, module: nn.Module) -> None:
        """Leave the weights to the checkpoint, where they are there as they are here; with a warning for the others."""
        network = self._network()
        origin = None if network is None else origin_of(network)
        if origin is None:
            return
        own = {n.removeprefix(self.prefix): e for n, e in origin.entries.items() if n.startswith(self.prefix)}
        if kept := release_to_disk(module, own, origin.stamps):
            some = ", ".join(kept[:3]) + (" …" if len(kept) > 3 else "")
            warn(
                f"{len(kept)} weights are not in a checkpoint as they are in memory, and stay there beside "
                f"OpenVINO's: {some}"
            )


class Call:
    """One call of a network as a function of tensors."""

    def __init__(
        self, inputs: dict[str, Tensor], function: Callable[..., Tensor], result: Callable[[Tensor], Any]
    ) -> None:
        self.inputs, self.function, self.result = inputs, function, result


def unet_inputs(
    unet: UNet2DConditionModel,
    sample: Tensor,
    timestep: Tensor | float | int,
    encoder_hidden_states: Tensor,
    *others: Any,
    timestep_cond: Tensor | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
    return_dict: bool = True,
    **named: Any,
) -> Call | None:
    """A call of the UNet without a ControlNet's residuals, masks and arguments of processors; None for others."""
    if others or any(value is not None for value in named.values()):
        return None
    half, rest = divmod(len(sample), 2)
    time = unet.waves_of_time(timestep, sample.device).values
    if not rest and len(time) == 1 and torch.equal(sample[:half], sample[half:]):
        sample = sample[:half]  # under guidance, where both texts have one sample: what is before the text, once
    extra = {} if timestep_cond is None else {"timestep_cond": timestep_cond}
    added = dict(added_cond_kwargs or {})
    if unet.add_embedding is not None and "time_ids" in added:
        added["time_ids"] = unet.waves_of_sizes(added["time_ids"]).values
    inputs = {"sample": sample, "time": time, "encoder_hidden_states": encoder_hidden_states, **extra, **added}
    names = list(inputs)[3:]

    def predict(unet: Any, x: Tensor, time: Tensor, text: Tensor, *more: Tensor) -> Tensor:
        given: dict[str, Any] = dict(zip(names, more, strict=True))
        if "time_ids" in given:
            given["time_ids"] = Waves(given["time_ids"])
        return unet(
            x, Waves(time), text, timestep_cond=given.pop("timestep_cond", None), added_cond_kwargs=given or None,
            return_dict=False,
        )[0]  # fmt: skip

    return _if_computed(inputs, predict, lambda x: UNet2DConditionOutput(sample=x) if return_dict else (x,))


def decoder_inputs(decoder: nn.Module, z: Tensor) -> Call | None:
    """A call of the VAE's decoder."""
    return _if_computed({"z": z}, lambda decoder, z: decoder(z), lambda x: x)


def _if_computed(
    inputs: dict[str, Tensor], function: Callable[..., Tensor], result: Callable[[Tensor], Any]
) -> Call | None:
    first = next(iter(inputs.values()))
    whole = all(type(x) is Tensor and not (x.requires_grad and torch.is_grad_enabled()) for x in inputs.values())
    return Call(inputs, function, result) if whole and first.dtype in COMPUTED else None


def _is_torchs(module: nn.Module) -> bool:
    """Whether only torch can run the module now: traced, compiled, looked at within, or in a forked process."""
    return (
        torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch.compiler.is_compiling()
        or is_lost()
        or next(module.parameters()).dtype not in COMPUTED
        or any(isinstance(layer.backend, CustomProcessor) for _, layer in attention_layers(module))
        or any(part._forward_hooks or part._forward_pre_hooks for part in module.modules() if part is not module)
    )


def _switched(module: nn.Module) -> str:
    """What can be switched on a network and changes what it computes: FreeU, and what LoRA adapters add."""
    names = ("freeu", "lora")
    parts = [(part, name) for part in module.modules() for name in names if hasattr(part, name)]
    return str([str(getattr(part, name)) for part, name in parts])


def _look(module: nn.Module) -> tuple[Any, ...]:
    """What differs once somebody changed or replaced a weight; nothing is read."""
    return tuple(
        (id(p), p.on_disk, p.dtype) if isinstance(p, StoredTensor) else (id(p), p._version, p.dtype)
        for p in tensors_of(module).values()
    )


def _digest(module: nn.Module) -> str:
    """Of the weights' numbers, one weight in memory at a time."""
    digest = hashlib.sha256()
    for name, p in tensors_of(module).items():
        numbers = numbers_of(p).contiguous()
        digest.update(f"{name} {tuple(p.shape)} {p.dtype}".encode())
        digest.update(numbers.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _twin(module: nn.Module) -> nn.Module:
    """The module with its weights in memory, those on disk read for it alone, and torch's kernel of attention.

    The module itself stays as it is, and other threads go on using it.
    """
    weights = {
        id(p): nn.Parameter(p.read(), requires_grad=False) if isinstance(p, StoredTensor) else p
        for p in module.parameters()
    }
    twin = copy.deepcopy(module, weights)
    for _, layer in attention_layers(twin):
        layer.backend = backends.get("sdpa")
    return twin
