"""The suites: which rows are measured, and what is shown of them. One suite per file, found by name."""

from __future__ import annotations

from ...core.registry import Registry
from .base import Suite

suites: Registry[Suite] = Registry("suite", __name__)

__all__ = ["Suite", "suites"]
