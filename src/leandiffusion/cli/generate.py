"""`leandiffusion generate`: from options to pictures on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from ..core.errors import ConfigError
from ..drawing.given import Given
from ..drawing.opening import Drawer, Drawn, open_model
from ..drawing.options import DrawingOptions, ResolvedOptions, resolve
from ..drawing.techniques import TechniqueOptions
from ..pictures.files import Destination
from .like import filled_like
from .preview import TERMINAL, PreviewOptions
from .report import describe_cost, give, say
from .usage import as_usage


def run(
    options: DrawingOptions,
    out: Path,
    *,
    count: int = 1,
    like: Path | None = None,
    show: bool = False,
    technique_options: TechniqueOptions = TechniqueOptions(),  # noqa: B008 - frozen
    preview: PreviewOptions | None = None,
) -> list[Path]:
    """Draw `count` pictures and save each; returns their paths, which are also printed.

    Picture i has seed + i and is drawn on its own, so that each can be drawn again alone, bit for bit.
    Raises typer.BadParameter for options that cannot be followed, before any model is opened; LeanError for what fails.
    """
    try:
        destination = Destination(out, count)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    if like is not None:
        options = filled_like(options, like, [name for name, _ in technique_options.enable])
    if options.prompt is None:
        raise typer.BadParameter('say what to draw: leandiffusion generate "a red circle", or --like PICTURE.png')
    with as_usage():
        resolved = resolve(options)
        try:
            technique_options.check()
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error
        given = Given.read(resolved)
    if preview is not None:
        preview.check()
    destination.prepare(expected_bytes=count * 4 * (resolved.width or 1024) * (resolved.height or 1024))

    paths: list[Path] = []
    for drawn in draw(resolved, count, technique_options, destination.folder, given, preview):
        start = time.perf_counter()
        path = destination.save(drawn.image, drawn.record, index=len(paths))
        saving = time.perf_counter() - start
        paths.append(path)
        if show:
            _show(drawn.image)
        give(path)
        say(describe_cost({**drawn.record.seconds, "save": saving}, drawn.record.peak_memory))
    if drawn.record.techniques:
        say(f"With {', '.join(drawn.record.techniques.values())}")
    return paths


def draw(
    options: ResolvedOptions,
    count: int,
    technique_options: TechniqueOptions,
    keep_in: Path,
    given: Given,
    preview: PreviewOptions | None = None,
) -> Iterator[Drawn]:
    """Open the model, then draw picture after picture. The first one's seconds include opening the model.

    `given` is what is drawn with. Latents that cannot be decoded are kept in the folder `keep_in`.
    """
    start = time.perf_counter()
    with as_usage():
        drawer = Drawer(open_model(options, technique_options, say))
    seconds = {"load": round(time.perf_counter() - start, 4)}
    on_step = None if preview is None else preview.callback(drawer.pipe)
    last = options.seed + count - 1
    line = f"Drawing with {options.model}, seed {options.seed}" + (f" to {last}" if count > 1 else "")
    drawer.pipe.watch = partial(_at_first, partial(say, line))
    no_bar = True if preview is not None and preview.where == TERMINAL else None  # None: a bar only on a terminal
    for index in range(count):
        label = "Drawing" if count == 1 else f"Drawing {index + 1}/{count}"
        drawer.pipe.set_progress_bar_config(desc=label, disable=no_bar)
        each = replace(options, seed=options.seed + index)
        try:
            drawn = drawer.draw(each, given, on_step)
        except Exception as error:
            if path := drawer.keep_latents(error, each, given, keep_in):
                say(f"The denoised latents are kept in {path}. Go on with:  leandiffusion decode {path}")
            raise
        drawer.pipe.watch = None
        if drawn.flagged:
            say("Note: the model's safety checker blacked this picture out. Another seed may pass.")
        yield replace(drawn, record=replace(drawn.record, seconds={**seconds, **drawn.record.seconds}))
        seconds = {}


def _at_first(tell: Callable[[], object], stage: str) -> AbstractContextManager[None]:
    """A pipeline's `watch` that tells at the first stage: what is refused was by then."""
    if stage == "encode":
        tell()
    return nullcontext()


def _show(image: Any) -> None:
    from rich.console import Console

    from ..pictures import terminal

    console = Console()
    reason = terminal.why_not(console)
    if reason:
        say(f"Note: the picture is not shown here: {reason}.")
    else:
        terminal.show(image, console)
