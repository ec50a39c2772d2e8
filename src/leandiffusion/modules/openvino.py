"""Networks in OpenVINO's format: traced as functions of tensors alone, compiled for one shape, run on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.openvino import products
from ..device.openvino import compiled, computes, imported, openvino, operations, shared

REVISION = 2
"""Of what graphs compute: raised where it changes, so that those that were kept are made anew."""

_ONE = "one"
"""The input of a graph that is always 1, so that what is multiplied with it is no constant."""


def convert(network: nn.Module, call: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    """`call(network, *inputs)` as OpenVINO's model, for inputs of these shapes. It shares the network's weights."""
    with torch.no_grad(), _tracing():
        traced: Any = torch.jit.trace(_Flat(network, call), tuple(inputs), check_trace=False)
        return openvino().convert_model(
            traced, example_input=tuple(inputs), input=[list(x.shape) for x in inputs], share_weights=True
        )


class Graph:
    """A compiled function of tensors with one result, read from `file`, where `write_graph` put it."""

    def __init__(self, file: Path, dtype: torch.dtype) -> None:
        self._compiled, self._mapped = imported(file, dtype)
        self._shape = tuple(self._compiled.output(0).get_shape())
        self._own = [torch.ones(1, 1, 1, 1) for x in self._compiled.inputs if _ONE in x.get_names()]

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Inputs of the shapes that it was made for -> its result, in the dtype of the first. In any thread."""
        inputs = [x.contiguous() for x in inputs]
        result = torch.empty(self._shape, dtype=inputs[0].dtype)
        request = self._compiled.create_infer_request()
        for index, x in enumerate([*inputs, *self._own]):
            request.set_input_tensor(index, shared(x))
        request.set_output_tensor(0, shared(result))
        request.start_async()
        request.wait()
        return result


def write_graph(
    file: Path, network: nn.Module, call: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Convert and compile, to compute in `dtype`, and write what came of it, with the weights."""
    model = convert(network, call, inputs)
    if dtype == torch.bfloat16 and computes(dtype):
        _keep_scores(model)
    file.write_bytes(compiled(model, dtype).export_model().getbuffer())


def _keep_scores(model: Any) -> None:
    """Have attention computed as `attention.openvino` does, in place of the operation that rounds its scores."""
    ops, ov = operations(), openvino()
    one = ops.parameter(ov.PartialShape([1, 1, 1, 1]), ov.Type.f32)
    one.output(0).set_names({_ONE})
    scales: dict[int, Any] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or node.get_input_size() != 3:  # a mask, or a scale
            continue
        if node.get_attributes()["causal"]:
            continue
        q, k, v = node.input_values()
        head_size = q.get_shape()[-1]
        if head_size not in scales:
            scales[head_size] = ops.multiply(one, ops.constant(head_size**-0.5, dtype="float32"))
        out = products(q, k, v, scales[head_size]).output(0)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(out)
    if scales:
        model.add_parameters([one])


class _Flat(nn.Module):
    """A network as a module of tensors alone, which is what converters take."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call
        self.train(network.training)

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.network, *inputs)


@contextmanager
def _tracing() -> Iterator[None]:
    """Without torch.jit's warnings: that shapes become constants, which is wanted here, and of its own future."""
    tracer: Any = torch.jit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tracer.TracerWarning)
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=category)
        yield
