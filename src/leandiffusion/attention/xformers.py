"""xFormers' memory-efficient attention, where the package is installed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..device.capabilities import why_no_xformers
from . import backends


@dataclass(frozen=True)
class XFormers:
    """`attention_op` is the pair of operators that xFormers should use; its own choice unless given."""

    attention_op: Any = None
    name: str = "xformers"

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # xFormers has (B, T, nh, hs)
        return _ops().memory_efficient_attention(q, k, v, op=self.attention_op).transpose(1, 2)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        if reasons := why_no_xformers(device):
            return reasons
        try:
            _ops()
        except (ImportError, OSError, RuntimeError) as error:
            return [f"xFormers is installed but cannot be imported: {str(error).strip().splitlines()[0]}"]
        if dtype == torch.float64:
            return [f"xFormers does not compute {dtype}"]
        return []

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        return 4 * batch * heads * queries


@cache
def _ops() -> Any:
    import importlib

    return importlib.import_module("xformers.ops")


backends.add("xformers", XFormers())
