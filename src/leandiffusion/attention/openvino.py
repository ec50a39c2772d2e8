"""Attention by OpenVINO's kernels on CPUs: scores of a few queries at a time, in the cache.

The products are written out and not taken as OpenVINO's one operation of attention. That one rounds to bfloat16 the
scores, and the queries times the scale, before the exponential: at scores of some tens it is ten times as wrong as
torch's kernel. Here scores stay in float32. The scale is an input, since a constant would be moved to the queries.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..core.notices import warn
from ..device.capabilities import onednn_computes, onednn_multiplies_faster
from ..device.host import is_host
from ..device.memory import is_out_of_memory
from ..device.openvino import (
    compiled,
    computes,
    is_installed,
    is_lost,
    openvino,
    operations,
    reason,
    shared,
    why_no_openvino,
)
from . import backends
from .sdpa import fused_attention

QUERIES, KEYS = 256, 64
"""From which on it is faster than torch's kernel. Calls with fewer are left to that one."""

LIBRARY_BYTES = 84 << 20
"""Of memory that OpenVINO takes: 48 MiB when it computes first, and up to as much for the kernels of all sizes of
Stable Diffusion 1.5 at 512 px, with their buffers."""

_COMPUTED = torch.float32, torch.bfloat16
_KINDS = 32
"""Of calls, by shape, that are compiled at one time: Stable Diffusion has seven at one size of pictures."""


class OpenVINO:
    """Reads q, k and v where they are, as long as their rows are contiguous in (B, T, nh, hs), as the networks' are."""

    name = "openvino"

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """By torch's kernel, with one warning, from the first time on that OpenVINO fails."""
        if not self.failed and not _is_left_to_torch(q, k, v):
            try:
                return self.compute(q, k, v)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                out = fused_attention(q, k, v)  # which says what is wrong, where the inputs are
                self.failed = True
                warn(f"OpenVINO failed to compute attention ({reason(error)}): torch's kernel does from here on.")
                return out
        return fused_attention(q, k, v)

    def compute(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As calling it, for any lengths, without gradients. One sample at a time, so that what is compiled, and the
        memory that it keeps, serves any batch."""
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        out = torch.empty_like(q)
        T, heads, head_size = q.shape[1:]
        model = _compiled(T, k.shape[1], heads, head_size, q.dtype, torch.get_num_threads())
        scale = torch.full((1, 1, 1, 1), head_size**-0.5)
        for sample in zip(q.split(1), k.split(1), v.split(1), out.split(1), strict=True):
            # A request of its own for each call takes 10 microseconds, serves any thread, and keeps no tensor alive.
            request = model.create_infer_request()
            for index, x in enumerate((*sample[:3], scale)):
                request.set_input_tensor(index, shared(x))
            request.set_output_tensor(0, shared(sample[3]))
            request.start_async()
            request.wait()
        return out.transpose(1, 2)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return why_no_openvino(device, dtype)

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        # Keys and values in another order, and scores of some queries on each thread. Heads' sizes are not told: 64.
        return 2 * keys * heads * 64 * itemsize + 2 * min(queries, 64) * keys * 4 * torch.get_num_threads()


def is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether it is installed and faster than torch's kernels there: where their products do not use all of the CPU.

    Told without loading OpenVINO. Measured at 1.7 times the speed in float32 and 2.8 in bfloat16 on an AMD Zen 5; on a
    Zen 3, without AVX-512, it was level.
    """
    return (
        is_host(device)
        and onednn_computes(dtype)
        and onednn_multiplies_faster()
        and dtype in _COMPUTED
        and is_installed()
    )


def _is_left_to_torch(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch is faster, or only torch can: gradients, tracing, compiling, tensors without numbers, or whose
    batches, heads or dtypes differ, of which it says what is wrong."""
    return (
        torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]  # first: sizes are no numbers then
        or torch.compiler.is_compiling()
        or q.dtype not in _COMPUTED
        or q.shape[2] < QUERIES
        or k.shape[2] < KEYS
        or any(type(x) is not Tensor or x.is_meta or not is_host(x.device) for x in (q, k, v))
        or len({(len(x), x.shape[1], x.shape[3], x.dtype) for x in (q, k, v)}) > 1
        or (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
        or is_lost()
        or not computes(q.dtype)
    )


@lru_cache(maxsize=_KINDS)
def _compiled(T: int, S: int, heads: int, head_size: int, dtype: torch.dtype, threads: int) -> Any:
    """Attention (1, T, nh, hs), (1, S, nh, hs) twice, scale -> (1, T, nh, hs), compiled for so many threads."""
    ops, ov = operations(), openvino()
    kind = ov.Type.bf16 if dtype == torch.bfloat16 else ov.Type.f32
    inputs = [ops.parameter(ov.PartialShape([1, length, heads, head_size]), kind) for length in (T, S, S)]
    scale = ops.parameter(ov.PartialShape([1, 1, 1, 1]), ov.Type.f32)
    swap = ops.constant([0, 2, 1, 3], dtype="int64")
    q, k, v = (ops.transpose(x, swap) for x in inputs)
    out = ops.transpose(products(q, k, v, scale), swap)
    return compiled(ov.Model([out], [*inputs, scale]), dtype)


def products(q: Any, k: Any, v: Any, scale: Any) -> Any:
    """Attention as OpenVINO's operations on nodes (B, nh, T, hs) and twice (B, nh, S, hs); in the dtype of q.

    `scale` has to come from an input of the model.
    """
    ops, kind = operations(), q.get_element_type().get_type_name()
    q, k, v = (ops.convert(x, "f32") for x in (q, k, v))
    scores = ops.multiply(ops.matmul(q, k, transpose_a=False, transpose_b=True), scale)
    summed = ops.matmul(ops.softmax(scores, axis=-1), v, transpose_a=False, transpose_b=False)
    return ops.convert(summed, kind)


backends.add("openvino", OpenVINO())
