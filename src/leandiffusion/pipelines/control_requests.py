"""What calls with ControlNets are given besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError
from ..run import inputs
from .picture_requests import MaskRequest, MaskRequestXL, PictureRequest, PictureRequestXL
from .request import Request, RequestXL

Scale = float | list[float]


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """The part of a request that is about ControlNets. `control_image` are the pictures that they see."""

    control_image: Any
    controlnet_conditioning_scale: Scale
    guess_mode: bool
    control_guidance_start: Scale
    control_guidance_end: Scale

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # the request beside this
        if self.control_image is None:
            raise ConfigError("the ControlNet's picture is missing: pass one, such as edges, depth or a pose.")
        for name, least, most in (
            ("controlnet_conditioning_scale", -100, 100), ("control_guidance_start", 0, 1),
            ("control_guidance_end", 0, 1),
        ):  # fmt: skip
            for value in as_list(getattr(self, name)):
                inputs.check_number(name, value, least, most)

    def for_each(self, count: int) -> list[tuple[float, float, float]]:
        """Scale, start and end for each of so many ControlNets. ConfigError for lists of another length, and for a
        start that is not before the end."""
        names = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
        columns = []
        for name in names:
            value = getattr(self, name)
            given = as_list(value)
            if isinstance(value, list | tuple) and len(given) != count:
                raise ConfigError(
                    f"{name} has {len(given)} entries for {count} ControlNets: pass one number, or {count}."
                )
            columns.append(given if len(given) == count else given * count)
        rows = list(zip(*columns, strict=True))
        for _, start, end in rows:
            if start >= end:
                raise ConfigError(
                    f"control_guidance_start={start} is not before control_guidance_end={end}: both are shares of the "
                    "steps, from 0 to 1."
                )
        return rows


@dataclass(frozen=True, kw_only=True)
class ControlRequest(Controlled, Request):
    """A call with ControlNets."""


@dataclass(frozen=True, kw_only=True)
class ControlRequestXL(Controlled, RequestXL):
    """A call with ControlNets where there are two text encoders."""


@dataclass(frozen=True, kw_only=True)
class ControlPictureRequest(Controlled, PictureRequest):
    """A call on a picture, with ControlNets."""


@dataclass(frozen=True, kw_only=True)
class ControlPictureRequestXL(Controlled, PictureRequestXL):
    """A call on a picture, with ControlNets, where there are two text encoders."""


@dataclass(frozen=True, kw_only=True)
class ControlMaskRequest(Controlled, MaskRequest):
    """A call on a picture and a mask, with ControlNets."""


@dataclass(frozen=True, kw_only=True)
class ControlMaskRequestXL(Controlled, MaskRequestXL):
    """A call on a picture and a mask, with ControlNets, where there are two text encoders."""


def as_list(value: Any) -> list[Any]:
    """A list as it is, anything else as one of one."""
    return list(value) if isinstance(value, list | tuple) else [value]
