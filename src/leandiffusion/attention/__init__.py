"""Attention backends: one per file, each registered by name in `backends`.

A backend is called with q (B, nh, T, hs), k and v (B, nh, S, hs) and returns (B, nh, T, hs) in q's dtype.
"""

from __future__ import annotations

from ..core.registry import Registry
from .base import AttentionBackend

backends: Registry[AttentionBackend] = Registry("attention backend", __name__)

__all__ = ["AttentionBackend", "backends"]
