"""The options of `generate`: completed from a picture to repeat and from defaults, checked before any model opens."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import typer

from ..core.errors import ConfigError, LeanError, NotSupported
from ..pictures.record import PictureRecord, read_record
from . import controlnet, lora
from .from_picture import check_picture_options
from .inputs import say_what_changed
from .report import say

DEMO = "demo"


@dataclass(frozen=True)
class GenerateOptions:
    """What the command line says. None leaves the choice to the picture named by `--like`, else to the model."""

    prompt: str | None = None
    model: str | None = None
    negative_prompt: str | None = None
    prompt_syntax: str | None = None
    embeddings: tuple[str, ...] | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    dtype: str | None = None
    device: str | None = None
    vae: str | None = None
    lora: tuple[str, ...] | None = None
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    resize: str | None = None
    padding_mask_crop: int | None = None
    controlnet: tuple[str, ...] | None = None
    control_image: tuple[str, ...] | None = None
    guess_mode: bool | None = None
    control_guidance_start: float | None = None
    control_guidance_end: float | None = None

    def filled_from(self, values: Mapping[str, Any]) -> GenerateOptions:
        """These options, with those that are None taken from `values`."""
        gaps = [f.name for f in fields(self) if getattr(self, f.name) is None and f.name in values]
        return replace(self, **{name: values[name] for name in gaps})


@dataclass(frozen=True)
class ResolvedOptions(GenerateOptions):
    """Options that say what to draw, with which model and seed. What is None still is up to the model."""

    prompt: str = ""
    model: str = DEMO
    seed: int = 0
    lora: tuple[str, ...] = ()
    prompt_syntax: str = "plain"
    embeddings: tuple[str, ...] = ()
    controlnet: tuple[str, ...] = ()
    control_image: tuple[str, ...] = ()

    @property
    def task(self) -> str | None:
        """What a pipeline has to do, as `open_pipeline` names it; None for what the model was made for."""
        task = None if self.image is None else "image-to-image" if self.mask is None else "inpainting"
        return f"{task or 'text-to-image'} with ControlNet" if self.controlnet else task


def resolve(options: GenerateOptions, like: Path | None = None, enabled: Collection[str] = ()) -> ResolvedOptions:
    """Complete `options` from the picture `like`, then from the demo model's settings if that one draws.

    `enabled` are the names of techniques that are asked for: a note says which the picture was drawn with besides that
    change a picture.

    Raises typer.BadParameter, which ends the command with code 2, for options that no machine could follow, and
    BackendUnavailable for a device that this machine lacks.
    """
    if like is not None:
        record = _read(like)
        _say_what_differs(record, enabled)
        values = dict(vars(record.recipe))
        if options.model not in (None, record.recipe.model):
            for name in ("vae", "embeddings", "lora", "controlnet", "control_image"):  # of that picture's model
                del values[name]
        if options.image not in (None, record.recipe.image):
            del values["mask"]  # it belongs to that picture's image
        options = options.filled_from(values)
        say_what_changed(record, options)
    if options.prompt is None:
        raise typer.BadParameter('say what to draw: leandiffusion generate "a red circle", or --like PICTURE.png')
    options = options.filled_from({"lora": (), "controlnet": (), "control_image": ()})
    lora.check(options.lora or ())
    check_picture_options(options)
    controlnet.check(options)
    options = options.filled_from({"prompt_syntax": "plain", "embeddings": ()})
    _check_prompts(options)
    _check_embeddings(options.embeddings or ())
    _check_device(options.device)
    _check_scheduler(options.scheduler)
    options = options.filled_from({"model": DEMO})
    if options.model == DEMO:
        from .. import demo

        options = options.filled_from({name: value for name, value in demo.DEFAULTS.items() if name != "seed"})
    return ResolvedOptions(**vars(options.filled_from({"seed": secrets.randbelow(2**32)})))


def _read(like: Path) -> PictureRecord:
    try:
        return read_record(like)
    except (ConfigError, OSError) as error:
        reason = f"{like}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise typer.BadParameter(reason, param_hint="--like") from error


def _say_what_differs(record: PictureRecord, enabled: Collection[str]) -> None:
    from ..measure.environment import package_version

    then, now = record.versions.get("torch"), package_version("torch")
    if then and now and then != now:
        say(f"Note: that picture was drawn with torch {then}; here is {now}, so pixels may differ slightly.")
    if left_out := {name: text for name, text in record.techniques.items() if name not in enabled}:
        from ..techniques import techniques
        from ..techniques.base import Exactness

        for name, text in left_out.items():
            if name in techniques and techniques.get(name).exactness == Exactness.APPROXIMATE:
                say(f"Note: that picture was drawn with {text}, which changes it: see --enable to draw it so again.")


def _check_prompts(options: GenerateOptions) -> None:
    from ..families.emphasis import WEIGHTED, check_syntax, parse

    try:
        if check_syntax(options.prompt_syntax) == WEIGHTED:
            parse(options.prompt or "")
            parse(options.negative_prompt or "")
    except (ConfigError, NotSupported) as error:
        raise typer.BadParameter(str(error)) from error


def embedding_and_word(text: str) -> tuple[str, str | None]:
    """'PATH:WORD' or 'PATH' -> both; what is a file or a folder as it stands has no word."""
    path, colon, word = text.rpartition(":")
    return (text, None) if not colon or not path or Path(text).expanduser().exists() else (path, word)


def _check_embeddings(texts: Collection[str]) -> None:
    if not texts:
        return
    from ..families.inversion import read_inversion

    for text in texts:
        try:
            read_inversion(*embedding_and_word(text))
        except (LeanError, OSError) as error:
            raise typer.BadParameter(str(error), param_hint="--embedding") from error


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
