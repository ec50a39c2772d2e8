"""A plan: the settings chosen for a call, what they were predicted to take, and why not others. Also as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ..core.config import read_json, write_json
from ..core.errors import ConfigError, MalformedFile
from ..core.wording import dtype_name
from ..run.inputs import check_count, check_side
from ..run.size import CallSize
from ..techniques import Technique
from ..techniques.base import Exactness
from ..techniques.stack import check_together, group_of, make
from .prediction import Prediction

FORMAT = 1
"""Of the files. Another number means that an older or newer version of this library wrote it."""

PER_LATENT = 8
"""Pixels along a side, of every family."""


@dataclass(frozen=True)
class Settings:
    """A combination of techniques and what it takes: predicted, and where it was tried measured."""

    techniques: tuple[Technique, ...]
    prediction: Prediction
    measured: Prediction | None = None

    def __str__(self) -> str:
        return ", ".join(map(str, self.techniques)) or "nothing switched on"

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {
            "techniques": [{"name": each.name, **_plain(each)} for each in self.techniques],
            "prediction": self.prediction.to_json(),
            "measured": None if self.measured is None else self.measured.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The settings that `to_json` wrote. ConfigError for techniques and settings that there are not."""
        chosen = [_technique(dict(each)) for each in values["techniques"]]
        check_together(chosen, fix="Take {0!r} out of the plan.")
        groups = [group_of(each) for each in chosen]
        if twice := [each.name for each in chosen if groups.count(group_of(each)) > 1]:
            raise ConfigError(f"{' and '.join(twice)} take each other's place: keep one of them in the plan.")
        measured = values["measured"]
        return cls(
            tuple(chosen),
            Prediction.from_json(values["prediction"]),
            None if measured is None else Prediction.from_json(measured),
        )


@dataclass(frozen=True)
class Plan:
    """The settings for calls of a size within a budget.

    `model` and `device` are what it was made for, `budget` in words, `budget_bytes` of the device (None: unlimited).
    `runners_up` are the fastest of the other ways to place weights that fit; `lower` those with a lower peak, to fall
    back on when memory runs out all the same, each lower than the one before. `unused` says of each technique that is
    not on why not. `unet_weights` counts the numbers that the UNet's weights are, which tells other models; None where
    an older plan does not say.
    """

    model: str
    device: str
    dtype: str
    call: CallSize
    steps: int
    allow: str
    budget: str
    budget_bytes: int | None
    settings: Settings
    runners_up: tuple[Settings, ...] = ()
    lower: tuple[Settings, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    unet_weights: int | None = None

    @property
    def techniques(self) -> tuple[Technique, ...]:
        """To be switched on."""
        return self.settings.techniques

    @property
    def prediction(self) -> Prediction:
        """What the settings take."""
        return self.settings.prediction

    def check_for(self, unet: nn.Module, dtype: torch.dtype | None) -> None:
        """ConfigError unless it was made for such a UNet, with weights of that dtype (None where it is not known)."""
        found = weights_of(unet)
        if self.unet_weights not in (None, found):
            raise ConfigError(
                f"this plan was made for {self.model}, whose UNet has {self.unet_weights:,} weights, and this model's "
                f"has {found:,}: plan again with this model."
            )
        name = dtype_name(dtype)
        if dtype is not None and name != self.dtype:
            raise ConfigError(
                f"this plan was made for weights in {self.dtype}, and these are in {name}: "
                f"open the model with dtype=torch.{self.dtype}, or plan again."
            )

    def next_lower(self) -> Plan | None:
        """The plan to fall back on when this one's memory does not do; None when there is no lower one."""
        if not self.lower:
            return None
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return Plan(**{**own, "settings": self.lower[0], "lower": self.lower[1:]})

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        several = {name: [each.to_json() for each in own[name]] for name in ("runners_up", "lower")}
        return {
            "format": FORMAT, **own, **several, "call": vars(self.call), "settings": self.settings.to_json(),
            "unused": dict(self.unused),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Any, source: str = "this plan") -> Self:
        """The plan that `to_json` wrote. ConfigError for what is none, naming `source` and what is wrong with it."""
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ConfigError(
                f"{source} is not a plan of format {FORMAT}: make one with `leandiffusion plan --save-plan`."
            )
        try:
            settings, unet_weights = Settings.from_json(values["settings"]), values.get("unet_weights")
            several = {key: tuple(map(Settings.from_json, values[key])) for key in ("runners_up", "lower")}
            budget = values["budget_bytes"]
            counts = {"steps": values["steps"], "budget_bytes": budget, "unet_weights": unet_weights}
            for name, count in counts.items():
                if count is not None or name == "steps":
                    check_count(name, count)
            return cls(
                model=str(values["model"]), device=str(values["device"]), dtype=_dtype_name(values["dtype"]),
                call=_call(values["call"]), steps=values["steps"], allow=Exactness(values["allow"]).value,
                budget=str(values["budget"]), budget_bytes=budget, settings=settings,
                unused={str(name): str(why) for name, why in values["unused"].items()},
                unet_weights=unet_weights, **several,
            )  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"has a wrong value ({error})"
            raise ConfigError(
                f"{source} {what}: make it again with `leandiffusion plan --save-plan`, or mend it by hand."
            ) from error

    def save(self, path: Path | str) -> None:
        """Write it to a JSON file; another file of that name is replaced when the new one is complete."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote. ConfigError when the file holds no plan, OSError when it cannot be read."""
        path = Path(path)
        try:
            values = read_json(path)
        except MalformedFile as error:
            raise ConfigError(
                f"{path} is not JSON, so no plan: make one with `leandiffusion plan --save-plan {path.name}`."
            ) from error
        return cls.from_json(values, str(path))


def weights_of(network: nn.Module) -> int:
    """How many numbers a network's weights are, wherever these are."""
    return sum(parameter.numel() for parameter in network.parameters())


def _plain(technique: Technique) -> dict[str, Any]:
    """Settings other than the defaults, as JSON has them."""
    values = {f.name: getattr(technique, f.name) for f in fields(technique)}  # type: ignore[arg-type]
    settings = {
        name: dtype_name(value) if isinstance(value, torch.dtype | torch.device) else value
        for name, value in values.items()
        if value is not None
    }
    return {"settings": settings} if settings else {}


def _technique(values: Mapping[str, Any]) -> Technique:
    settings = dict(values.get("settings", {}))
    if "dtype" in settings:
        settings["dtype"] = getattr(torch, _dtype_name(settings["dtype"]))
    return make(str(values["name"]), settings)


def _dtype_name(value: Any) -> str:
    if value not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"dtype={value!r} is none of float32, float16, bfloat16.")
    return str(value)


def _call(values: Mapping[str, Any]) -> CallSize:
    further = {"chunks": 1, "pictures": 0, "controls": 0, "image_prompts": 0}  # older plans do not have them
    counts = {name: values[name] for name in ("height", "width", "batch")}
    counts |= {name: values.get(name, least) for name, least in further.items()}
    for name, count in counts.items():
        if name in ("height", "width"):
            check_side(name, count, PER_LATENT)
        else:
            check_count(name, count, least=further.get(name, 1))
    return CallSize(**counts, guidance=bool(values["guidance"]), perturbed=bool(values.get("perturbed")))
