"""Which kernel memory-efficient attention means on a device."""

from __future__ import annotations

from typing import Any

import torch

from . import AttentionBackend, backends
from .xformers import XFormers


def memory_efficient(
    device: torch.device, dtype: torch.dtype, attention_op: Any = None
) -> tuple[AttentionBackend, str | None]:
    """xFormers where it runs; elsewhere torch's own kernel without a score matrix, and a sentence that says why."""
    wanted = XFormers(attention_op)
    reasons = wanted.why_not(device, dtype)
    if not reasons:
        return wanted, None
    usable = [backends.get(name) for name in ("flash", "efficient") if not backends.get(name).why_not(device, dtype)]
    chosen = usable[0] if usable else backends.get("sdpa")
    ignored = "" if attention_op is None else " attention_op has no effect."
    return chosen, f"{'; '.join(reasons)}. Using torch's {chosen.name!r} kernel, which needs no score matrix.{ignored}"
