"""Attention by OpenVINO's operation, for long sequences on CPUs: scores of a few queries at a time, in the cache."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..device.host import is_host
from ..device.openvino import compiled, computes, is_lost, openvino, operations, shared, why_no_openvino
from . import backends
from .sdpa import fused_attention

LONG = {torch.float32: 4096, torch.bfloat16: 1024}
"""Queries and keys from which on it is at least as fast as torch's kernel. Calls with fewer are left to that one, and
so is everything in another dtype."""


class OpenVINO:
    """Reads q, k and v where they are, as long as their rows are contiguous in (B, T, nh, hs), as the networks' are."""

    name = "openvino"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if _is_left_to_torch(q, k, v):
            return fused_attention(q, k, v)
        return self.compute(q, k, v)

    def compute(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As calling it, for any lengths, without gradients."""
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        if q.is_meta:  # while shapes are traced
            return fused_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        out = torch.empty_like(q)
        # A request of its own for each call takes 10 microseconds, serves any thread, and keeps no tensor alive.
        heads, head_size = q.shape[2:]
        request = _operation(heads, head_size, q.dtype, torch.get_num_threads()).create_infer_request()
        for index, x in enumerate((q, k, v)):
            request.set_input_tensor(index, shared(x))
        request.set_output_tensor(0, shared(out))
        request.start_async()
        request.wait()
        return out.transpose(1, 2)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return why_no_openvino(device, dtype)

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        rows = min(queries, 64) * torch.get_num_threads()
        return 2 * rows * keys * 4 + keys * heads * batch * itemsize  # scores of a block of queries on each thread


def _is_left_to_torch(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch is faster, or only torch can: gradients, tracing, compiling, tensors without numbers."""
    return (
        torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]  # first: sizes are no numbers then
        or torch.compiler.is_compiling()
        or min(q.shape[2], k.shape[2]) < LONG.get(q.dtype, float("inf"))
        or any(type(x) is not Tensor or not is_host(x.device) for x in (q, k, v))
        or (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
        or is_lost()
        or not computes(q.dtype)
    )


@lru_cache(maxsize=16)
def _operation(heads: int, head_size: int, dtype: torch.dtype, threads: int) -> Any:
    """Attention (B, T, nh, hs), (B, S, nh, hs) twice -> (B, T, nh, hs), compiled for so many threads."""
    ops, ov = operations(), openvino()
    kind = ov.Type.bf16 if dtype == torch.bfloat16 else ov.Type.f32
    inputs = [ops.parameter(ov.PartialShape([-1, -1, heads, head_size]), kind) for _ in range(3)]
    swap = ops.constant([0, 2, 1, 3], dtype="int64")
    heads_first = [ops.transpose(x, swap) for x in inputs]
    out = ops.transpose(ops.scaled_dot_product_attention(*heads_first, causal=False), swap)
    return compiled(ov.Model([out], inputs), dtype)


backends.add("openvino", OpenVINO())
