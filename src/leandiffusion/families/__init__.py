"""Model families: what a Stable Diffusion checkpoint is made of, and how a folder or a single file is opened.

One file per family (sd1, sd2, sdxl) adds its `Family` to the registry `families`; `detect` finds the family of a file.
"""

from __future__ import annotations

from .base import Family, NetworkSpec, detect, families

__all__ = ["Family", "NetworkSpec", "detect", "families"]
