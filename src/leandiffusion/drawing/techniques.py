"""Which techniques are asked for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from .values import DTYPES

OFFLOAD = "_offload"
"""How the names of techniques end that begin with opening the model."""


@dataclass(frozen=True)
class TechniqueOptions:
    """The techniques that are asked for: names and settings, in the order of asking; or the memory
    to choose them for, or a file with a plan that has chosen them."""

    enable: tuple[tuple[str, dict[str, Any]], ...] = ()
    memory: Any = None
    allow: str = "exact"
    plan: Path | None = None

    @property
    def to_enable(self) -> dict[str, dict[str, Any]]:
        """Techniques to enable once the model is open, with their settings; offloading begins with opening."""
        return {name: settings for name, settings in self.enable if not name.endswith(OFFLOAD)}

    @property
    def offloading(self) -> Any:
        """The technique to open the model with; None for none."""
        named = [(name, settings) for name, settings in self.enable if name.endswith(OFFLOAD)]
        if len(named) > 1:
            raise ConfigError("offloading is asked for in two ways: leave one of the options out.")
        return _made(*named[0]) if named else None

    def opening(self, device: str) -> dict[str, Any]:
        """Keywords for opening the model that say where its weights go."""
        if self.plan is not None:  # which says whether they go to the device, or travel
            return {}
        if self.memory is not None:
            return {"device": device, "memory": self.memory, "allow": self.allow}
        return {"device": device, "offload": self.offloading}

    def check(self) -> None:
        """ConfigError for unknown names and settings, and techniques that refuse each other, before any model opens."""
        if self.memory is not None or self.plan is not None:
            self._check_chosen()
        offload = self.offloading
        if not self.to_enable and offload is None:
            return
        from ..techniques.stack import check_together

        wanted = [_made(name, settings) for name, settings in self.to_enable.items()]
        if offload is not None:
            wanted.append(offload)
        check_together(wanted, fix="Leave one of the two options out.")

    def _check_chosen(self) -> None:
        """ConfigError for a budget or a plan beside other ways to choose, and for files that hold no plan."""
        option = "--plan" if self.memory is None else "--memory"
        others = [*(name for name, _ in self.enable), *(["--plan"] if option == "--memory" and self.plan else [])]
        if others:
            raise ConfigError(f"{option} chooses the techniques: leave out {', '.join(others)}.")
        if self.plan is not None:
            self.read_plan()

    def read_plan(self) -> Any:
        """The plan in the file. ConfigError for what is none."""
        from ..plan.plan import Plan

        assert self.plan is not None
        try:
            return Plan.load(self.plan)
        except OSError as error:
            raise ConfigError(f"{self.plan}: {error.strerror or error}") from error

    def changing_pixels(self) -> list[str]:
        """What is asked for that draws another picture, or the same with numbers of lower precision, in words."""
        from ..techniques.base import Exactness

        if self.memory is not None:
            return [] if self.allow == Exactness.EXACT else [f"{self.allow} within {self.memory}"]
        made = self.read_plan().techniques if self.plan is not None else [_made(*named) for named in self.enable]
        return sorted(str(technique) for technique in made if technique.exactness != Exactness.EXACT)

    def apply(self, pipe: Any) -> None:
        """Enable the techniques."""
        if self.plan is not None:
            pipe.apply(self.read_plan())
        for name, settings in self.to_enable.items():
            pipe.enable(_made(name, settings), why="asked for by name")


def _made(name: str, settings: dict[str, Any]) -> Any:
    """The technique; ConfigError for names and settings that there are not. A dtype may be written as in --dtype."""
    import torch

    from ..techniques.stack import make

    if "dtype" in settings:
        dtype = getattr(torch, DTYPES.get(str(settings["dtype"]), str(settings["dtype"])), None)
        settings = settings | {"dtype": dtype or settings["dtype"]}
    return make(name, settings)
