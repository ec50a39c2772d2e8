"""Other programs drawing the same work: one file each, found by name.

A peer is only imported in the process that draws with it. Its file registers a class of `Drawer`s.
"""

from __future__ import annotations

from ...core.registry import Registry
from ..drawer import Drawer

peers: Registry[type[Drawer]] = Registry("peer", __name__)

__all__ = ["Drawer", "peers"]
