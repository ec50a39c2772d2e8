"""Short names for schedulers, as the command line takes them: each is a class and the settings that it implies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConfigError
from ..core.registry import did_you_mean
from .base import Scheduler
from .settings import schedulers


@dataclass(frozen=True)
class Preset:
    """A scheduler class and the settings to override in the model's own scheduler config."""

    class_name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


_DPM = "DPMSolverMultistepScheduler"

PRESETS: Mapping[str, Preset] = {
    "ddim": Preset("DDIMScheduler"),
    "ddpm": Preset("DDPMScheduler"),
    "pndm": Preset("PNDMScheduler"),
    "lms": Preset("LMSDiscreteScheduler"),
    "lms-karras": Preset("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler": Preset("EulerDiscreteScheduler"),
    "euler-karras": Preset("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-a": Preset("EulerAncestralDiscreteScheduler"),
    "heun": Preset("HeunDiscreteScheduler"),
    "dpm++": Preset(_DPM, {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": Preset(_DPM, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++-sde": Preset(_DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++-sde-karras": Preset(_DPM, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    "unipc": Preset("UniPCMultistepScheduler"),
    "lcm": Preset("LCMScheduler"),
}


def build(name: str, config: Mapping[str, Any] | None = None) -> Scheduler:
    """The scheduler called `name`, a short name of `PRESETS` or a class name, from the model's scheduler `config`.

    Raises ConfigError with the known names for any other.
    """
    preset = PRESETS.get(name)
    if preset is None:
        if name not in schedulers:
            known = [*PRESETS, *schedulers]
            raise ConfigError(f"unknown scheduler {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
        preset = Preset(name)
    return schedulers.get(preset.class_name).from_config(config or {}, **preset.overrides)
