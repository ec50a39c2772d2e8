"""Which techniques the options of `generate` ask for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choices:
    """What was asked for on the command line, by the names of the options."""

    attention: str | None = None
    attention_slicing: str | int | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
    channels_last: bool = False
    tf32: bool = False
    offload: str | None = None
    trace: bool = False
    compile: bool = False

    @property
    def techniques(self) -> dict[str, dict[str, Any]]:
        """Techniques to switch on once the model is open, with their settings; offloading begins with opening."""
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
        return {name: settings for name, (wanted, settings) in asked.items() if wanted}

    def check(self) -> None:
        """ConfigError for an unknown kernel and for choices that refuse each other, before any model opens."""
        if not self.techniques:
            return
        from ..techniques import techniques
        from ..techniques.stack import check_together, make

        offload = [f"{self.offload}_offload"] if self.offload else []
        check_together(
            [make(name, settings) for name, settings in self.techniques.items()]
            + [techniques.get(name)() for name in offload],
            fix="Leave one of the two options out.",
        )

    def apply(self, pipe: Any) -> None:
        """Switch on what was asked for."""
        for name, settings in self.techniques.items():
            pipe.enable(name, why="asked for on the command line", **settings)
