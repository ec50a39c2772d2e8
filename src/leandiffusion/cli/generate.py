"""`leandiffusion generate`: from options to pictures on disk."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ..core.errors import ConfigError
from ..pictures.files import Destination, slug
from ..pictures.latents import save_latents
from ..pictures.record import PictureRecord, Recipe
from . import controlnet, lora
from .from_picture import Given
from .generate_options import GenerateOptions, ResolvedOptions, embedding_and_word, resolve
from .report import describe_cost, give, say
from .techniques import TechniqueOptions


@dataclass(frozen=True)
class Drawn:
    """A picture (a Pillow image) in memory, and what it will say of itself."""

    image: Any
    record: PictureRecord


def run(
    options: GenerateOptions,
    out: Path,
    *,
    count: int = 1,
    like: Path | None = None,
    show: bool = False,
    technique_options: TechniqueOptions = TechniqueOptions(),  # noqa: B008 - frozen
) -> list[Path]:
    """Draw `count` pictures and save each; returns their paths, which are also printed.

    Picture i has seed + i and is drawn on its own, so that each can be drawn again alone, bit for bit.
    Raises typer.BadParameter for options that cannot be followed, before any model is opened; LeanError for what fails.
    """
    try:
        destination = Destination(out, count)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    resolved = resolve(options, like, [name for name, _ in technique_options.enable])
    try:
        technique_options.check()
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    given = Given.read(resolved)
    destination.prepare(expected_bytes=count * 4 * (resolved.width or 1024) * (resolved.height or 1024))

    last = resolved.seed + count - 1
    say(f"Drawing with {resolved.model}, seed {resolved.seed}" + (f" to {last}" if count > 1 else ""))
    paths: list[Path] = []
    for drawn in draw(resolved, count, technique_options, destination.folder, given):
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
) -> Iterator[Drawn]:
    """Open the model, then draw picture after picture. The first one's seconds include opening the model.

    `given` is what is drawn with. Latents that cannot be decoded are kept in the folder `keep_in`.
    """
    start = time.perf_counter()
    pipe = open_model(options, technique_options)
    seconds = {"load": time.perf_counter() - start}
    for index in range(count):
        label = "Drawing" if count == 1 else f"Drawing {index + 1}/{count}"
        pipe.set_progress_bar_config(desc=label, disable=None)  # None: a bar only on a terminal
        with _keeping_latents(pipe, options, options.seed + index, keep_in, given):
            drawn = _draw_one(pipe, options, options.seed + index, seconds, given)
        yield drawn
        seconds = {}


def open_model(options: ResolvedOptions, technique_options: TechniqueOptions = TechniqueOptions()) -> Any:  # noqa: B008 - frozen
    """The pipeline of the chosen model for what is to be drawn, at its dtype, on its device, with its scheduler and the
    chosen techniques."""
    import torch

    from ..device.capabilities import usual_dtype
    from ..device.names import default_device
    from ..pipelines import open_pipeline
    from ..schedulers import build

    device = options.device or str(default_device())
    dtype = usual_dtype(torch.device(device)) if options.dtype is None else getattr(torch, options.dtype)
    components: dict[str, Any] = {} if options.vae is None else {"vae": options.vae}
    components |= controlnet.open_nets(options, dtype, device)
    pipe = open_pipeline(
        options.model, dtype=dtype, task=options.task, **technique_options.opening(device), **components
    )
    technique_options.apply(pipe)
    lora.load(pipe, options.lora)
    pipe.prompt_syntax = options.prompt_syntax
    for path, word in map(embedding_and_word, options.embeddings or ()):
        pipe.load_textual_inversion(path, token=word)
    if options.scheduler is not None:
        pipe.scheduler = build(options.scheduler, pipe.scheduler.config)
    return pipe


def _draw_one(pipe: Any, options: ResolvedOptions, seed: int, seconds: Mapping[str, float], given: Given) -> Drawn:
    import torch

    asked = {
        "negative_prompt": options.negative_prompt or None,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        **given.arguments(pipe, options),
        **controlnet.arguments(options),
    }
    output = pipe(
        prompt=options.prompt,
        generator=torch.Generator("cpu").manual_seed(seed),
        **{keyword: value for keyword, value in asked.items() if value is not None},
    )
    if any(getattr(output, "nsfw_content_detected", None) or ()):
        say("Note: the model's safety checker blacked this picture out. Another seed may pass.")
    image = output.images[0]
    return Drawn(image, _record(pipe, options, seed, image.size, {**seconds, **pipe.last_times}, given))


@contextmanager
def _keeping_latents(pipe: Any, options: ResolvedOptions, seed: int, folder: Path, given: Given) -> Iterator[None]:
    """Around drawing: where decoding fails, what was denoised is put on disk, and the user is told how to go on."""
    try:
        yield
    except Exception as error:
        latents = getattr(error, "latents", None)
        if latents is not None:
            side = pipe.vae_scale_factor
            size = latents.shape[-1] * side, latents.shape[-2] * side
            path = save_latents(latents, _record(pipe, options, seed, size, {}, given), folder, slug(options.prompt))
            say(f"The denoised latents are kept in {path}. Go on with:  leandiffusion decode {path}")
        raise


def _record(
    pipe: Any, options: ResolvedOptions, seed: int, size: tuple[int, int], seconds: Mapping[str, float], given: Given
) -> PictureRecord:
    import torch

    from .. import __version__

    defaults, plan = inspect.signature(type(pipe).__call__).parameters, pipe.plan
    recipe = Recipe(
        model=options.model,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt or "",
        seed=seed,
        steps=defaults["num_inference_steps"].default if options.steps is None else options.steps,
        guidance_scale=defaults["guidance_scale"].default if options.guidance_scale is None else options.guidance_scale,
        scheduler=options.scheduler,
        width=size[0],
        height=size[1],
        dtype=str(pipe.dtype).removeprefix("torch."),
        device=str(pipe.device),
        vae=options.vae,
        lora=options.lora,
        image=options.image,
        mask=options.mask,
        strength=defaults["strength"].default if options.image and options.strength is None else options.strength,
        resize=options.resize,
        padding_mask_crop=options.padding_mask_crop,
        prompt_syntax=options.prompt_syntax,
        embeddings=options.embeddings,
        controlnet=options.controlnet,
        control_image=options.control_image,
        guess_mode=options.guess_mode,
        control_guidance_start=options.control_guidance_start,
        control_guidance_end=options.control_guidance_end,
    )
    return PictureRecord(
        recipe,
        sampler=type(pipe.scheduler).__name__,
        karras=bool(pipe.scheduler.config.get("use_karras_sigmas")),
        seconds={stage: round(taken, 4) for stage, taken in seconds.items()},
        peak_memory=_peaks(),
        techniques={entry.name: str(entry.technique) for entry in pipe.techniques},
        versions={"leandiffusion": __version__, "torch": str(torch.__version__)},
        plan={} if plan is None else {"budget": plan.budget, "settings": str(plan.settings)},
        predicted={} if plan is None else plan.prediction.figures,
        inputs=given.sha256,
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
