"""torch's scaled_dot_product_attention, held to one of its kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..device.capabilities import why_no_efficient, why_no_flash
from ..device.host import is_host
from . import backends
from .sdpa import fused_attention

_WIDEST_ON_GPUS = 256  # channels of a head, of FlashAttention-2 as torch builds it


@dataclass(frozen=True)
class Flash:
    """FlashAttention-2 (Dao 2023): no score matrix. torch has it for CPUs, and for GPUs in half precision.

    On GPUs heads wider than 256, as the VAE's one of 512, go to torch's memory-efficient kernel, which takes any.
    """

    name: str = "flash"

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if is_host(q.device):  # by its own name: `sdpa_kernel` chooses for the whole process, other threads too
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
        narrow = q.shape[-1] <= _WIDEST_ON_GPUS
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if narrow else SDPBackend.EFFICIENT_ATTENTION):
            return fused_attention(q, k, v)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return why_no_flash(device, dtype)

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        return 4 * batch * heads * queries  # the log-sum-exp of each row


@dataclass(frozen=True)
class Efficient:
    """Memory-efficient attention (Rabe & Staats 2021) as torch ships it, for GPUs in any precision."""

    name: str = "efficient"

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            return fused_attention(q, k, v)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return why_no_efficient(device)

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        return 4 * batch * heads * queries


backends.add("flash", Flash())
backends.add("efficient", Efficient())
