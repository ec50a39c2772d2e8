"""Samplers that turn noise into a picture, under diffusers' class names: `schedulers` holds each by name.

`from leandiffusion.schedulers import DDIMScheduler` imports that class on first use. `build` makes one from a short
name such as 'dpm++-karras' and the config of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ays import AysSchedules
from .base import Scheduler, SchedulerOutput
from .noise import randn
from .presets import PRESETS, build
from .settings import schedulers

if TYPE_CHECKING:  # for editors; at run time every registered class is found by `__getattr__`
    from .ddim import DDIMScheduler as DDIMScheduler
    from .ddpm import DDPMScheduler as DDPMScheduler
    from .deis import DEISMultistepScheduler as DEISMultistepScheduler
    from .dpm_sde import DPMSolverSDEScheduler as DPMSolverSDEScheduler
    from .dpm_singlestep import DPMSolverSinglestepScheduler as DPMSolverSinglestepScheduler
    from .dpm_solver import DPMSolverMultistepScheduler as DPMSolverMultistepScheduler
    from .edm_euler import EDMEulerScheduler as EDMEulerScheduler
    from .euler import EulerDiscreteScheduler as EulerDiscreteScheduler
    from .euler_ancestral import EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler
    from .heun import HeunDiscreteScheduler as HeunDiscreteScheduler
    from .kdpm2 import KDPM2DiscreteScheduler as KDPM2DiscreteScheduler
    from .kdpm2_ancestral import KDPM2AncestralDiscreteScheduler as KDPM2AncestralDiscreteScheduler
    from .lcm import LCMScheduler as LCMScheduler
    from .lms import LMSDiscreteScheduler as LMSDiscreteScheduler
    from .pndm import PNDMScheduler as PNDMScheduler
    from .tcd import TCDScheduler as TCDScheduler
    from .unipc import UniPCMultistepScheduler as UniPCMultistepScheduler

__all__ = ["PRESETS", "AysSchedules", "Scheduler", "SchedulerOutput", "build", "randn", "schedulers"]


def __getattr__(name: str) -> Any:
    if name.endswith("Scheduler") and name in schedulers:
        return schedulers.get(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *schedulers])
