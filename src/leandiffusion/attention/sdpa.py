"""torch's scaled_dot_product_attention: flash or memory-efficient kernels where torch has them for the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..core.shapes import is_traced
from ..device.capabilities import is_widened
from . import backends


def fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """torch's `scaled_dot_product_attention` with its options, by whichever kernel torch chooses.

    It has none for the meta device, where it would write attention out. While shapes are traced the CPU's kernel
    stands for any: they all make the result and a number for each row.
    """
    if q.dtype == torch.float16 and is_widened(q):  # in bfloat16 torch's kernel is as fast as in float32
        wide = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
        return fused_attention(q.float(), k.float(), v.float(), **wide).to(q.dtype)
    if q.is_meta and is_traced():
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, **options)[0]
    return F.scaled_dot_product_attention(q, k, v, **options)


class ScaledDotProduct:
    """The default: exact, and linear memory in T on CPU and on any GPU with a flash kernel."""

    name = "sdpa"

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return fused_attention(q, k, v)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        return 4 * batch * heads * queries  # the log-sum-exp row that flash kernels keep


backends.add("sdpa", ScaledDotProduct())
