"""DeepCache: the UNet's deep features, which change little from step to step, are computed in every few steps only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..core.errors import ConfigError
from ..core.flag import Flag
from ..modules.deep import DeepFeature
from ..modules.unet import UNet2DConditionModel
from ..run.run import Run, UNetCall
from ..run.size import CallSize
from . import techniques
from .base import Exactness, Phase, Price, Technique, UNetCalls
from .hooks import Undo
from .subject import Subject, why_no_runs
from .switchable import Switchable

SHALLOW = 0.15
"""Of a whole step's time, what one takes that computes the outermost part alone; of Stable Diffusion 1.5's UNet."""


@techniques.register("deep_cache")
@dataclass(frozen=True)
class DeepCache(Technique):
    """Every `interval`th call of the UNet is computed whole; those in between compute the outermost skip connections up
    to number `branch` and the layers that take them, and use the deeper features of the last whole one (DeepCache, Ma
    et al. 2023). With interval=1 every call is whole. ConfigError for an interval below 1 or a branch below 0.
    """

    interval: int = 3
    branch: int = 0

    name: ClassVar[str] = "deep_cache"
    title: ClassVar[str] = "Deep features reused"
    phase: ClassVar[Phase] = Phase.RUN
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    calls: ClassVar[tuple[str, ...]] = ("enable_deep_cache(interval=3, branch=0)",)
    flag: ClassVar[Flag] = Flag(
        "--deep-cache", "Compute the UNet's deep layers in every Nth step only: another picture.",
        value="N", setting="interval", number="a number of steps",
    )  # fmt: skip
    bench_row: ClassVar[tuple[str, str]] = ("published", "deep features of every third step reused")
    refuses: ClassVar[tuple[str, ...]] = ("traced_unet",)
    price: ClassVar[Price] = Price(
        saves="Most of the UNet's work in all steps but every interval-th. With weights that travel, also the reading "
        "of what is not computed.",
        costs="Another picture: the larger the interval, the further from the exact one. Memory for one feature map.",
        use="30 steps and more, which are alike; with few steps each differs too much from the one before.",
        refuses="A traced UNet, which is recorded whole; networks that are not this library's; pipelines of diffusers, "
        "whose loop is not this library's.",
    )

    def __post_init__(self) -> None:
        for name, value, least in (("interval", self.interval, 1), ("branch", self.branch, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r}: pass a whole number of {least} or more.")

    def why_not(self, subject: Subject) -> list[str]:
        unet = subject.denoiser
        if reasons := why_no_runs(subject):
            return reasons
        if not _splits(unet):
            return [f"the UNet is a {type(unet).__name__}, expected leandiffusion's own and its own forward"]
        if self.branch >= unet.skip_count:
            return [f"branch={self.branch}: this UNet's skip connections have the numbers 0 to {unet.skip_count - 1}"]
        return []

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        return [cls(interval) for interval in (2, 3)]

    def unet_calls(self, call: CallSize) -> UNetCalls:
        return {call: (1 + (self.interval - 1) * SHALLOW) / self.interval}

    def apply(self, subject: Subject) -> Undo:
        return subject.each_run(self._prepare)

    def _prepare(self, run: Run) -> None:
        if self.interval > 1:
            run.call = Reusing(run.call, self.interval, self.branch + 1)


class DeepCacheMethods(Switchable):
    """Methods of the pipelines."""

    def enable_deep_cache(self, interval: int = 3, branch: int = 0) -> None:
        """Compute the UNet's deep layers in every `interval`th step only. It is faster, and gives another picture."""
        self.enable("deep_cache", interval=interval, branch=branch)

    def disable_deep_cache(self) -> None:
        """Undo `enable_deep_cache`."""
        self.disable("deep_cache")


class Reusing:
    """Calls the UNet for one run, and keeps its deep feature between the calls as long as it is valid.

    It is not when the UNet, the text or other conditions, or the shape of the input are not those of the call before.
    """

    def __init__(self, inner: UNetCall, interval: int, depth: int) -> None:
        self._inner = inner
        self._interval = interval
        self._depth = depth
        self._feature: DeepFeature | None = None
        self._age = 0  # calls since the feature was computed
        self._made_for: list[Any] = []

    def __call__(self, run: Run, given: Tensor, i: int, inputs: Mapping[str, Any]) -> Tensor:
        unet = run.model.unet
        if not _splits(unet) or self._depth > unet.skip_count:  # a callback has replaced it
            self._feature = None
            return self._inner(run, given, i, inputs)
        now = [unet, *_conditions(inputs), given.shape, given.dtype]
        if self._feature is None or self._age == self._interval or not _same(now, self._made_for):
            self._feature, self._age, self._made_for = DeepFeature(self._depth), 0, now
        self._age += 1
        return self._inner(run, given, i, {**inputs, "deep": self._feature})


def _splits(unet: Any) -> bool:
    """Whether it is a network whose forward takes `deep`."""
    own = isinstance(unet, UNet2DConditionModel) and type(unet).forward is UNet2DConditionModel.forward
    return own and "forward" not in vars(unet)


def _conditions(inputs: Mapping[str, Any]) -> list[Any]:
    """The tensors that the UNet is conditioned on for a whole run, and how often each was written to."""
    tensors = [
        inputs["encoder_hidden_states"],
        inputs.get("timestep_cond"),
        *inputs.get("added_cond_kwargs", {}).values(),
    ]
    return [each for x in tensors if x is not None for each in (x, None if x.is_inference() else x._version)]


def _same(one: list[Any], other: list[Any]) -> bool:
    """The same objects, and equal numbers and shapes."""
    return len(one) == len(other) and all(
        a is b or (not isinstance(a, Tensor) and a == b) for a, b in zip(one, other, strict=True)
    )
