"""Which techniques the options of `generate` ask for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError
from .options import DTYPES

OFFLOAD = "_offload"
"""How the names of techniques end that begin with opening the model."""


@dataclass(frozen=True)
class TechniqueOptions:
    """The options of `generate` that are about techniques."""

    attention: str | None = None
    attention_slicing: str | int | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
    channels_last: bool = False
    tf32: bool = False
    offload: str | None = None
    trace: bool = False
    compile: bool = False
    enable: tuple[tuple[str, dict[str, Any]], ...] = ()

    @property
    def to_enable(self) -> dict[str, dict[str, Any]]:
        """Techniques to enable once the model is open, with their settings; offloading begins with opening."""
        asked: dict[str, tuple[bool, dict[str, Any]]] = {
            "tf32": (self.tf32, {}),
            "channels_last": (self.channels_last, {}),
            "attention_backend": (self.attention is not None, {"backend": self.attention}),
            "attention_slicing": (self.attention_slicing is not None, {"size": self.attention_slicing}),
            "vae_slicing": (self.vae_slicing, {}),
            "vae_tiling": (self.vae_tiling, {}),
            "traced_unet": (self.trace, {}),
            "compile": (self.compile, {}),
        }
        chosen = {name: settings for name, (wanted, settings) in asked.items() if wanted}
        return chosen | {name: settings for name, settings in self.enable if not name.endswith(OFFLOAD)}

    @property
    def offloading(self) -> Any:
        """What to open the model with: the technique that `enable` names, or the way of `offload`; None for neither."""
        named = [(name, settings) for name, settings in self.enable if name.endswith(OFFLOAD)]
        if len(named) + (self.offload is not None) > 1:
            raise ConfigError("offloading is asked for in two ways: leave one of the options out.")
        return _made(*named[0]) if named else self.offload

    def check(self) -> None:
        """ConfigError for unknown names and settings, and techniques that refuse each other, before any model opens."""
        offload = self.offloading
        if not self.to_enable and offload is None:
            return
        from ..techniques.stack import check_together

        wanted = [_made(name, settings) for name, settings in self.to_enable.items()]
        if offload is not None:
            wanted.append(_made(offload + OFFLOAD, {}) if isinstance(offload, str) else offload)
        check_together(wanted, fix="Leave one of the two options out.")

    def apply(self, pipe: Any) -> None:
        """Enable the techniques."""
        for name, settings in self.to_enable.items():
            pipe.enable(_made(name, settings), why="asked for on the command line")


def _made(name: str, settings: dict[str, Any]) -> Any:
    """The technique; ConfigError for names and settings that there are not. A dtype may be written as in --dtype."""
    import torch

    from ..techniques.stack import make

    if "dtype" in settings:
        dtype = getattr(torch, DTYPES.get(str(settings["dtype"]), str(settings["dtype"])), None)
        settings = settings | {"dtype": dtype or settings["dtype"]}
    return make(name, settings)
