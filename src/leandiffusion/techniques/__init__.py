"""Ways of saving memory or time: one per file, each registered by name in `techniques`."""

from __future__ import annotations

from ..core.registry import Registry
from .base import Technique

techniques: Registry[type[Technique]] = Registry("technique", __name__)

__all__ = ["Technique", "techniques"]
