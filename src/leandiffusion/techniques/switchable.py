"""What techniques can be switched on and off on: this library's pipelines, and others that are attached."""

from __future__ import annotations

from typing import Any

from .base import Technique
from .stack import Applied, Stack, make


class Switchable:
    """Any technique by name, on whatever has a stack of them.

    Techniques can be switched in any order; they are applied in the order that makes sense. Switching one on again
    replaces it. Nothing changes while a picture is being drawn: ConfigError.

    A subclass in a technique's file holds methods of the pipelines that switch it, under diffusers' names where there
    are any; each ends in `enable` or `disable`. `make generated` gives them to the pipelines.
    """

    _stack: Stack

    def enable(self, technique: Technique | str, *, why: str = "asked for", **settings: Any) -> None:
        """Switch a technique on: an instance, or its name and settings, as in `enable("attention_slicing", size=2)`.

        Raises ConfigError for unknown names and settings, or when another technique that is on refuses it, and
        BackendUnavailable when this machine or pipeline cannot run it; before anything changes. One that only saves
        time warns instead and is left out.
        """
        self._stack.enable(make(technique, settings), why)

    def disable(self, name: str) -> None:
        """Switch the technique of that name off; nothing happens if it is not on. ConfigError for unknown names."""
        self._stack.disable(name)

    def why_not(self, technique: Technique | str, **settings: Any) -> list[str]:
        """Reasons why that technique cannot be switched on with these components on this machine; empty when it can."""
        return make(technique, settings).why_not(self._stack.subject)

    @property
    def techniques(self) -> tuple[Applied, ...]:
        """What is on, in order of application: each with its settings and why. `print(*pipe.techniques, sep="\\n")`."""
        return self._stack.applied
