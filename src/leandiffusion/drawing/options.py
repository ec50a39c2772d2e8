"""The options of one picture: completed from a record and from defaults, checked before any model opens."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..core.errors import ConfigError, LeanError, NotSupported
from . import controlnet, ip_adapter, lora
from .values import normal
from .wrong import OptionError

if TYPE_CHECKING:
    from ..pictures.record import Recipe

DEMO = "demo"

OF_THE_MODEL = ("vae", "embeddings", "lora", "controlnet", "control_image", "ip_adapter", "ip_image")
"""Options that mean nothing with another model."""


SEVERAL = ("lora", "embeddings", "controlnet", "control_image", "ip_adapter", "ip_image")
"""Options that are lists, empty unless said."""


@dataclass(frozen=True)
class DrawingOptions:
    """What is asked for, under the names that records have. None leaves the choice to the model.

    Sizes are pixels. `lora`, `controlnet` and `ip_image` are PATH or PATH:SCALE, `embeddings` PATH or PATH:WORD, all
    other files paths. `strength` and the shares of the steps are from 0 to 1. `pag_scale` and `pag_layers` are of
    perturbed attention.
    """

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
    ip_adapter: tuple[str, ...] | None = None
    ip_image: tuple[str, ...] | None = None
    pag_scale: float | None = None
    pag_layers: tuple[str, ...] | None = None

    def filled_from(self, values: Mapping[str, Any]) -> Self:
        """These options, with those that are None taken from `values`."""
        gaps = [f.name for f in fields(self) if getattr(self, f.name) is None and f.name in values]
        return replace(self, **{name: values[name] for name in gaps})

    def like(self, recipe: Recipe) -> Self:
        """These options, with those that are None taken from a picture's recipe, as far as they belong together."""
        values = dict(vars(recipe))
        if self.model not in (None, recipe.model):
            for name in OF_THE_MODEL:
                del values[name]
        if self.image not in (None, recipe.image):
            del values["mask"]
        return self.filled_from(values)

    def normal(self) -> Self:
        """These options with their values as they are kept (`values.normal`). OptionError for wrong ones."""
        return replace(self, **{f.name: normal(f.name, str(f.type), getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class ResolvedOptions(DrawingOptions):
    """Options that say what to draw, with which model and seed. What is None still is up to the model."""

    prompt: str = ""
    model: str = DEMO
    seed: int = 0
    lora: tuple[str, ...] = ()
    prompt_syntax: str = "plain"
    embeddings: tuple[str, ...] = ()
    controlnet: tuple[str, ...] = ()
    control_image: tuple[str, ...] = ()
    ip_adapter: tuple[str, ...] = ()
    ip_image: tuple[str, ...] = ()

    @property
    def task(self) -> str | None:
        """What a pipeline has to do, as `open_pipeline` names it; None for what the model was made for."""
        task = None if self.image is None else "image-to-image" if self.mask is None else "inpainting"
        return f"{task or 'text-to-image'} with ControlNet" if self.controlnet else task


def resolve(options: DrawingOptions) -> ResolvedOptions:
    """Check `options` and complete them: from the demo model's settings if that one draws, and with a random seed.

    Pictures are not read (`given.Given` does). OptionError for options that no machine could follow, BackendUnavailable
    for a device that this machine lacks.
    """
    options = options.normal()
    if options.prompt is None:
        raise OptionError("prompt", "say what to draw.")
    options = options.filled_from(dict.fromkeys(SEVERAL, ()))
    options = options.filled_from({"prompt_syntax": "plain", "model": DEMO})
    check_each(options)
    _check_pictures(options)
    controlnet.check(options)
    ip_adapter.check(options)
    if options.pag_layers and not options.pag_scale:
        raise OptionError("pag_layers", "it belongs to {pag_scale}, and there is none.")
    _check_prompts(options)
    if options.model == DEMO:
        from .. import demo

        options = options.filled_from({name: value for name, value in demo.DEFAULTS.items() if name != "seed"})
    steps_run(options)
    return ResolvedOptions(**vars(options.filled_from({"seed": secrets.randbelow(2**32)})))


def steps_run(options: DrawingOptions) -> int | None:
    """The steps that are run: of a picture that is drawn on, the last part of the schedule. None where that is up to
    the model, OptionError where it is no step at all."""
    steps = options.steps
    if steps is None or options.image is None or options.strength is None:
        return steps
    if not (run := min(steps, int(steps * options.strength))):
        rule = "{value:g} of {count} steps leaves none: raise it to {least:g} or more, or ask for more {steps}."
        raise OptionError("strength", rule, value=options.strength, count=steps, least=math.ceil(100 / steps) / 100)
    return run


def check_each(options: DrawingOptions) -> None:
    """OptionError for values that are wrong whatever the others are; files of LoRAs and embeddings are looked at."""
    options = options.normal()
    lora.check(options.lora or ())
    _check_embeddings(options.embeddings or ())
    _check_device(options.device)
    _check_scheduler(options.scheduler)


def _check_pictures(options: DrawingOptions) -> None:
    """OptionError for what belongs to pictures where there is none, and for what excludes each other."""
    needs = {"image": ("mask", "strength", "resize"), "mask": ("padding_mask_crop",)}
    for needed, names in needs.items():
        for name in names:
            if getattr(options, needed) is None and getattr(options, name) is not None:
                raise OptionError(name, f"it belongs to {{{needed}}}, and there is none.")
    if options.padding_mask_crop is not None and options.resize is not None:
        raise OptionError(
            "resize", "with {padding_mask_crop} the picture keeps its size, and only what is around the mask is drawn."
        )
    if options.resize is not None:
        from ..pictures.reading import RESIZE

        if options.resize not in RESIZE:
            raise OptionError("resize", "{how!r} is none of {known}.", how=options.resize, known=", ".join(RESIZE))


def _check_prompts(options: DrawingOptions) -> None:
    from ..families.emphasis import WEIGHTED, check_syntax, parse

    field = "prompt_syntax"
    try:
        if check_syntax(options.prompt_syntax) == WEIGHTED:
            for field in ("prompt", "negative_prompt"):
                parse(getattr(options, field) or "")
    except (ConfigError, NotSupported) as error:
        raise OptionError(field, "{reason}", reason=error) from error


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
            raise OptionError("embeddings", "{reason}", reason=error) from error


def _check_scheduler(name: str | None) -> None:
    if name is None:
        return
    from ..schedulers import build

    try:
        build(name)
    except ConfigError as error:
        raise OptionError("scheduler", "{reason}", reason=error) from error


def _check_device(name: str | None) -> None:
    if name is None:
        return
    from ..device.names import check_device

    try:
        check_device(name)
    except ConfigError as error:
        raise OptionError("device", "{reason}", reason=error) from None
