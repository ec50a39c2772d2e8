"""`leandiffusion decode`: pictures of latents that could not be decoded when they were drawn."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from ..core.errors import ConfigError
from ..drawing.opening import open_model
from ..drawing.options import DrawingOptions, ResolvedOptions
from ..drawing.techniques import TechniqueOptions
from ..pictures.files import Destination
from ..pictures.latents import read_latents
from .report import describe_cost, give, say


def run(file: Path, out: Path, options: DrawingOptions, technique_options: TechniqueOptions) -> list[Path]:
    """Decode the latents in `file` with the model that drew them, or the one in `options`; returns the pictures' paths.

    Of the model the VAE alone is read. Raises typer.BadParameter for files that hold no latents, LeanError for what
    fails.
    """
    try:
        latents, record = read_latents(file)
    except (ConfigError, OSError) as error:
        reason = f"{file}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        raise typer.BadParameter(reason) from error
    destination = Destination(out, len(latents))
    destination.prepare()
    recipe = record.recipe
    pipe = open_model(_resolved(options, recipe), technique_options, draws=False)
    start = time.perf_counter()
    paths: list[Path] = []
    for index, image in enumerate(pipe.decode(latents)):
        seconds = {**record.seconds, "decode": round(time.perf_counter() - start, 4)}
        paths.append(destination.save(image, replace(record, seconds=seconds), index=index))
        give(paths[-1])
    say(describe_cost({"decode": time.perf_counter() - start}, {}))
    return paths


def _resolved(options: DrawingOptions, recipe: Any) -> ResolvedOptions:
    """What a decode asks of the model; of what else was drawn with nothing counts any more."""
    values = {name: getattr(recipe, name) for name in ("model", "dtype", "vae", "prompt", "seed", "width", "height")}
    known = vars(options.filled_from(values)).items()
    return ResolvedOptions(**{name: value for name, value in known if value is not None})
