"""Guidance in an interval: classifier-free guidance in some steps, the conditional prediction alone in the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from ..core.errors import ConfigError
from ..core.flag import Flag
from ..run.guidance import embedding_width
from ..run.run import Run
from ..run.size import CallSize
from . import techniques
from .base import Exactness, Phase, Price, Technique, UNetCalls
from .hooks import Undo
from .subject import Subject, why_no_runs
from .switchable import Switchable


@techniques.register("guidance_interval")
@dataclass(frozen=True)
class GuidanceInterval(Technique):
    """Classifier-free guidance applies from `start` to `stop`, fractions of the steps; before and after, the
    unconditional prediction is not computed (Kynkäänniemi et al. 2024). From 0 to 1 is guidance as usual.

    ConfigError unless 0 <= start < stop <= 1.
    """

    start: float = 0.0
    stop: float = 0.7

    name: ClassVar[str] = "guidance_interval"
    title: ClassVar[str] = "Guidance interval"
    phase: ClassVar[Phase] = Phase.RUN
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    calls: ClassVar[tuple[str, ...]] = ("enable_guidance_interval(start=0.0, stop=0.7)",)
    flag: ClassVar[Flag] = Flag(
        "--guidance-interval", "Guide in a part of the steps only, and halve the work of the others: another picture."
    )
    bench_row: ClassVar[tuple[str, str]] = ("published", "guidance in the first 70% of the steps")
    refuses: ClassVar[tuple[str, ...]] = ("traced_unet",)
    price: ClassVar[Price] = Price(
        saves="Half of the UNet's work in every step outside the interval.",
        costs="Another picture: the same layout, other details.",
        use="Guided pictures, of which it may change details.",
        refuses="A traced UNet, which is made for one number of samples; networks that take the guidance scale as an "
        "input; pipelines of diffusers, whose loop is not this library's.",
    )

    def __post_init__(self) -> None:
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (self.start, self.stop))
        if not numbers or not 0 <= self.start < self.stop <= 1:
            raise ConfigError(
                f"start={self.start!r}, stop={self.stop!r}: pass fractions of the steps with 0 <= start < stop <= 1, "
                "such as start=0 and stop=0.5 to guide the first half."
            )

    def why_not(self, subject: Subject) -> list[str]:
        unet = subject.denoiser
        if reasons := why_no_runs(subject):
            return reasons
        if not isinstance(unet, nn.Module):
            return [
                f"the UNet is a {type(unet).__name__}, expected a torch module: another object may take the "
                "unconditional and the conditional half together only"
            ]
        if embedding_width(unet) is not None:
            return ["the UNet takes the guidance scale as an input and never makes two predictions"]
        return []

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        return [cls()] if call.guidance else []

    def predictions(self, call: CallSize) -> UNetCalls:
        guided = self.stop - self.start
        return {call: guided, replace(call, guidance=False): 1 - guided} if call.guidance else {call: 1}

    def apply(self, subject: Subject) -> Undo:
        return subject.each_run(self._prepare)

    def _prepare(self, run: Run) -> None:
        first, end = round(self.start * run.length), round(self.stop * run.length)
        guides, order = run.guides, run.order  # not the run itself, which holds this function
        run.guides = lambda i: first <= i // order < end and guides(i)


class GuidanceIntervalMethods(Switchable):
    """Methods of the pipelines."""

    def enable_guidance_interval(self, start: float = 0.0, stop: float = 0.7) -> None:
        """Guide from `start` to `stop`, fractions of the steps, and compute the conditional prediction alone in the
        others. It is faster, and gives another picture."""
        self.enable("guidance_interval", start=start, stop=stop)

    def disable_guidance_interval(self) -> None:
        """Undo `enable_guidance_interval`."""
        self.disable("guidance_interval")
