"""torch's scaled_dot_product_attention: flash or memory-efficient kernels where torch has them for the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import backends


class ScaledDotProduct:
    """The default: exact, and linear memory in T on CPU and on any GPU with a flash kernel."""

    name = "sdpa"

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        return 4 * batch * heads * queries  # the log-sum-exp row that flash kernels keep


backends.add("sdpa", ScaledDotProduct())
