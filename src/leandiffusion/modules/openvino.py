"""Networks in OpenVINO's format: traced as functions of tensors alone, compiled for one shape, run on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..device.openvino import compiled, imported, openvino, shared


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
        output = self._compiled.output(0)
        self._shape = tuple(output.get_shape())

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Inputs of the shapes that it was made for -> its result, in the dtype of the first. In any thread."""
        inputs = [x.contiguous() for x in inputs]
        result = torch.empty(self._shape, dtype=inputs[0].dtype)
        request = self._compiled.create_infer_request()
        for index, x in enumerate(inputs):
            request.set_input_tensor(index, shared(x))
        request.set_output_tensor(0, shared(result))
        request.start_async()
        request.wait()
        return result


def write_graph(
    file: Path, network: nn.Module, call: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Convert and compile, to compute in `dtype`, and write what came of it, with the weights."""
    file.write_bytes(compiled(convert(network, call, inputs), dtype).export_model().getbuffer())


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
