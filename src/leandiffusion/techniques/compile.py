"""Compiled blocks: torch.compile turns each repeated block into one function, compiled once for all blocks like it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.flag import Flag
from ..device.capabilities import why_no_inductor
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, compile_in_place, set_global, together
from .subject import Subject
from .switchable import Switchable

PARTS = ("unet", "vae")
"""'unet' is whatever network runs at each step."""

BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
"""Names of the classes whose instances repeat, in this library's networks and in diffusers'."""

MAX_SHAPES = 256
"""Compiled versions of one block that may exist: a UNet has some 15 shapes of resnet for each size of picture."""


@techniques.register("compile")
@dataclass(frozen=True)
class Compile(Technique):
    """Compiles the resnet and transformer blocks of `parts`, 'unet' and 'vae', where they are.

    `mode` and `backend` are torch.compile's. `dynamic` False compiles for each size of picture, True once for all,
    more slowly, None as torch sees fit. A new prompt compiles nothing. ConfigError for unknown parts.
    """

    parts: tuple[str, ...] = PARTS
    mode: str | None = None
    backend: str = "inductor"
    dynamic: bool | None = False

    name: ClassVar[str] = "compile"
    title: ClassVar[str] = "Compiled UNet and VAE"
    phase: ClassVar[Phase] = Phase.GRAPH
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ("enable_compile()",)
    flag: ClassVar[Flag] = Flag("--compile", "Compile UNet and VAE: slow start, faster steps.")
    refuses: ClassVar[tuple[str, ...]] = ("sequential_offload", "model_offload", "traced_unet")
    price: ClassVar[Price] = Price(
        saves="Time per step: operations between products and convolutions become one.",
        costs="A minute or more before the first picture of each size. Some memory for the compiler.",
        use="Many pictures of one size.",
        refuses="Compiled blocks fix where their weights are, so these cannot travel; and a trace has no blocks.",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple | list):
            raise ConfigError(f"parts={self.parts!r}: give a tuple of names, such as ('unet',).")
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise ConfigError(f"parts={self.parts!r}: {unknown[0]!r} is none of {', '.join(PARTS)}.")

    def why_not(self, subject: Subject) -> list[str]:
        reasons = []
        if not any(True for _ in self._blocks(subject)):
            reasons.append("none of its networks has repeated blocks to compile")
        if self.backend == "inductor":
            reasons += why_no_inductor(subject.device)
        return reasons

    def apply(self, subject: Subject) -> Undo:
        try:
            return together(self._steps(subject))
        except (RuntimeError, ValueError, AssertionError) as error:  # a mode or backend that torch does not know
            raise ConfigError(f"torch.compile refuses {self}: {str(error).splitlines()[0]}") from error

    def _steps(self, subject: Subject) -> Iterator[Undo]:
        limit = max(torch._dynamo.config.recompile_limit, MAX_SHAPES)
        yield set_global(torch._dynamo.config, "recompile_limit", limit)
        for block in self._blocks(subject):
            yield compile_in_place(block, mode=self.mode, backend=self.backend, dynamic=self.dynamic)

    def _blocks(self, subject: Subject) -> Iterator[nn.Module]:
        for part in self.parts:
            network = subject.denoiser if part == "unet" else subject.component(part)
            if isinstance(network, nn.Module):
                kinds = {*BLOCKS, *(getattr(network, "_repeated_blocks", None) or ())}  # what diffusers' networks name
                yield from (module for module in network.modules() if type(module).__name__ in kinds)


class CompileMethods(Switchable):
    """Methods of the pipelines."""

    def enable_compile(self, **settings: Any) -> None:
        """Compile UNet and VAE with torch.compile; `settings` as in `techniques.compile`."""
        self.enable("compile", **settings)
