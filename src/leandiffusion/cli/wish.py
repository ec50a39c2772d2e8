"""What a person asked for: completed from a picture to repeat and from defaults, and checked before any model opens."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import typer

from ..core.errors import ConfigError
from ..pictures.record import PictureRecord, read_record
from .report import say

DEMO = "demo"


@dataclass(frozen=True)
class Wish:
    """What was asked for. None leaves the choice to the picture named by `--like`, else to the model."""

    prompt: str | None = None
    model: str | None = None
    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    dtype: str | None = None
    device: str | None = None
    vae: str | None = None

    def else_from(self, values: Mapping[str, Any]) -> Wish:
        """This wish, with what it leaves open taken from `values`."""
        gaps = [f.name for f in fields(self) if getattr(self, f.name) is None and f.name in values]
        return replace(self, **{name: values[name] for name in gaps})


@dataclass(frozen=True)
class Order(Wish):
    """A wish that can be carried out: it says what to draw, with which model and seed."""

    prompt: str = ""
    model: str = DEMO
    seed: int = 0


def to_order(wish: Wish, like: Path | None = None) -> Order:
    """Fill the gaps of `wish` from the picture `like`, then from the demo model's settings if that one draws.

    Raises typer.BadParameter, which ends the command with code 2, for a wish that no machine could carry out, and
    BackendUnavailable for a device that this machine lacks.
    """
    if like is not None:
        record = _read(like)
        _say_what_differs(record)
        values = dict(vars(record.recipe))
        if wish.model not in (None, record.recipe.model):
            del values["vae"]  # it belongs to that picture's model
        wish = wish.else_from(values)
    if wish.prompt is None:
        raise typer.BadParameter('say what to draw: leandiffusion generate "a red circle", or --like PICTURE.png')
    _check_device(wish.device)
    _check_scheduler(wish.scheduler)
    wish = wish.else_from({"model": DEMO})
    if wish.model == DEMO:
        from .. import demo

        wish = wish.else_from({name: value for name, value in demo.DEFAULTS.items() if name != "seed"})
    return Order(**vars(wish.else_from({"seed": secrets.randbelow(2**32)})))


def _read(like: Path) -> PictureRecord:
    try:
        return read_record(like)
    except (ConfigError, OSError) as error:
        reason = f"{like}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise typer.BadParameter(reason, param_hint="--like") from error


def _say_what_differs(record: PictureRecord) -> None:
    from ..measure.environment import package_version

    then, now = record.versions.get("torch"), package_version("torch")
    if then and now and then != now:
        say(f"Note: that picture was drawn with torch {then}; here is {now}, so pixels may differ slightly.")


def _check_scheduler(name: str | None) -> None:
    if name is None:
        return
    from ..schedulers import build

    try:
        build(name)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--scheduler") from error


def _check_device(name: str | None) -> None:
    if name is None:
        return
    from ..device.names import check_device

    try:
        check_device(name)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
