"""Which kernel memory-efficient attention means on a device."""

from __future__ import annotations

from typing import Any

import torch

from . import AttentionBackend, backends
from .openvino import is_faster
from .xformers import XFormers


def memory_efficient(
    device: torch.device, dtype: torch.dtype, attention_op: Any = None
) -> tuple[AttentionBackend, str | None]:
    """xFormers where it runs; elsewhere the fastest kernel without a score matrix, and a sentence that says why."""
    wanted = XFormers(attention_op)
    reasons = wanted.why_not(device, dtype)
    if not reasons:
        return wanted, None
    chosen = _fastest(device, dtype)
    ignored = "" if attention_op is None else " attention_op has no effect."
    return chosen, f"{'; '.join(reasons)}. Using the kernel {chosen.name!r}, which needs no score matrix.{ignored}"


def _fastest(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    ours = backends.get("openvino")
    if is_faster(device, dtype) and not ours.why_not(device, dtype):  # which loads it
        return ours
    usable = [backends.get(name) for name in ("flash", "efficient") if not backends.get(name).why_not(device, dtype)]
    return usable[0] if usable else backends.get("sdpa")
