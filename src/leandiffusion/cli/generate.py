"""`leandiffusion generate`: from an order to pictures on disk."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ..core.errors import ConfigError
from ..pictures.files import Destination
from ..pictures.record import PictureRecord, Recipe
from .report import describe_cost, give, say
from .techniques import Choices
from .wish import Order, Wish, to_order


@dataclass(frozen=True)
class Drawn:
    """A picture (a Pillow image) in memory, and what it will say of itself."""

    image: Any
    record: PictureRecord


def run(
    wish: Wish,
    out: Path,
    *,
    count: int = 1,
    like: Path | None = None,
    show: bool = False,
    choices: Choices = Choices(),  # noqa: B008 - frozen
) -> list[Path]:
    """Draw `count` pictures and save each; returns their paths, which are also printed.

    Picture i has seed + i and is drawn on its own, so that each can be drawn again alone, bit for bit.
    Raises typer.BadParameter for a wish that can not be, before any model is opened; LeanError for what fails.
    """
    try:
        destination = Destination(out, count)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    order = to_order(wish, like)
    try:
        choices.check()
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    destination.prepare(expected_bytes=count * 4 * (order.width or 1024) * (order.height or 1024))

    last = order.seed + count - 1
    say(f"Drawing with {order.model}, seed {order.seed}" + (f" to {last}" if count > 1 else ""))
    paths: list[Path] = []
    for drawn in draw(order, count, choices):
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


def draw(order: Order, count: int, choices: Choices) -> Iterator[Drawn]:
    """Open the model, then draw picture after picture. The first one's seconds include opening the model."""
    start = time.perf_counter()
    pipe = open_model(order, choices)
    seconds = {"load": time.perf_counter() - start}
    for index in range(count):
        label = "Drawing" if count == 1 else f"Drawing {index + 1}/{count}"
        pipe.set_progress_bar_config(desc=label, disable=None)  # None: a bar only on a terminal
        yield _draw_one(pipe, order, order.seed + index, seconds)
        seconds = {}


def open_model(order: Order, choices: Choices = Choices()) -> Any:  # noqa: B008 - frozen
    """The pipeline of the order's model, at its dtype, on its device, with its scheduler and the chosen techniques."""
    import torch

    from ..device.capabilities import usual_dtype
    from ..device.names import default_device
    from ..pipelines import open_pipeline
    from ..schedulers import build

    device = order.device or str(default_device())
    dtype = usual_dtype(torch.device(device)) if order.dtype is None else getattr(torch, order.dtype)
    components: dict[str, Any] = {} if order.vae is None else {"vae": order.vae}
    pipe = open_pipeline(order.model, dtype=dtype, device=device, offload=choices.offload, **components)
    choices.apply(pipe)
    if order.scheduler is not None:
        pipe.scheduler = build(order.scheduler, pipe.scheduler.config)
    return pipe


def _draw_one(pipe: Any, order: Order, seed: int, seconds: Mapping[str, float]) -> Drawn:
    import torch

    asked = {
        "negative_prompt": order.negative_prompt or None,
        "num_inference_steps": order.steps,
        "guidance_scale": order.guidance_scale,
        "width": order.width,
        "height": order.height,
    }
    output = pipe(
        prompt=order.prompt,
        generator=torch.Generator("cpu").manual_seed(seed),
        **{keyword: value for keyword, value in asked.items() if value is not None},
    )
    if any(getattr(output, "nsfw_content_detected", None) or ()):
        say("Note: the model's safety checker blacked this picture out. Another seed may pass.")
    image = output.images[0]
    return Drawn(image, _record(pipe, order, seed, image.size, {**seconds, **pipe.last_times}))


def _record(pipe: Any, order: Order, seed: int, size: tuple[int, int], seconds: Mapping[str, float]) -> PictureRecord:
    import torch

    from .. import __version__

    defaults = inspect.signature(type(pipe).__call__).parameters
    recipe = Recipe(
        model=order.model,
        prompt=order.prompt,
        negative_prompt=order.negative_prompt or "",
        seed=seed,
        steps=defaults["num_inference_steps"].default if order.steps is None else order.steps,
        guidance_scale=defaults["guidance_scale"].default if order.guidance_scale is None else order.guidance_scale,
        scheduler=order.scheduler,
        width=size[0],
        height=size[1],
        dtype=str(pipe.dtype).removeprefix("torch."),
        device=str(pipe.device),
        vae=order.vae,
    )
    return PictureRecord(
        recipe,
        sampler=type(pipe.scheduler).__name__,
        karras=bool(pipe.scheduler.config.get("use_karras_sigmas")),
        seconds={stage: round(taken, 4) for stage, taken in seconds.items()},
        peak_memory=_peaks(),
        techniques={entry.name: str(entry.technique) for entry in pipe.techniques},
        versions={"leandiffusion": __version__, "torch": str(torch.__version__)},
    )


def _peaks() -> dict[str, int]:
    from ..device.memory import peak_memory
    from ..measure.memory import peak_rss

    process = peak_rss()
    peaks = {} if process is None else {"process": process}
    return peaks | {peak.device: peak.reserved for peak in peak_memory()}


def _show(image: Any) -> None:
    from rich.console import Console

    from ..pictures import terminal

    console = Console()
    reason = terminal.why_not(console)
    if reason:
        say(f"Note: the picture is not shown here: {reason}.")
    else:
        terminal.show(image, console)
