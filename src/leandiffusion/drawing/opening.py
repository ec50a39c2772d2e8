"""A model opened for options, and pictures drawn with it, as many as are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..pictures.files import slug
from ..pictures.latents import save_latents
from ..pictures.record import PictureRecord
from . import controlnet, ip_adapter, lora
from .given import Given
from .options import DEMO, ResolvedOptions, embedding_and_word
from .record import record_of
from .techniques import TechniqueOptions
from .wrong import OptionError

OPENED_WITH = (
    "model",
    "task",
    "dtype",
    "device",
    "vae",
    "lora",
    "embeddings",
    "controlnet",
    "ip_adapter",
    "pag_scale",
    "pag_layers",
)
"""Options that a model is opened with; all others are each picture's own."""

OWN_OF_EACH = ("prompt", "negative_prompt", "seed")
"""Options in which pictures of one call may differ."""


@dataclass(frozen=True)
class Drawn:
    """A picture (a Pillow image) in memory, and what it will say of itself; `flagged` where the model's safety checker
    blacked it out."""

    image: Any
    record: PictureRecord
    flagged: bool = False


def opened_with(options: ResolvedOptions) -> tuple[Any, ...]:
    """Equal for options that the same opened model can draw."""
    return tuple(getattr(options, name) for name in OPENED_WITH)


def open_model(
    options: ResolvedOptions,
    techniques: TechniqueOptions = TechniqueOptions(),  # noqa: B008 - frozen
    say: Callable[[str], object] = lambda line: None,
    *,
    draws: bool = True,
) -> Any:
    """The pipeline of the chosen model for what is to be drawn, at its dtype, on its device, with the chosen
    techniques. `say` gets a line where a dtype had to be chosen by measuring. `draws=False` is for what does not draw
    with it; else OptionError, before anything is opened, where it draws with pictures that the options do not have."""
    from ..device.names import default_device
    from ..pipelines import open_pipeline

    if draws:
        _check_drawn_with(options)
    device = options.device or str(default_device())
    asked = options.dtype if techniques.plan is None else options.dtype or techniques.read_plan().dtype
    dtype = dtype_for(asked, options.model, device, planned=techniques.memory is not None, say=say)
    components: dict[str, Any] = {} if options.vae is None else {"vae": options.vae}
    components |= controlnet.open_nets(options, dtype, device)
    pipe = open_pipeline(options.model, dtype=dtype, task=options.task, **techniques.opening(device), **components)
    techniques.apply(pipe)
    lora.load(pipe, options.lora)
    ip_adapter.load(pipe, options)
    for path, word in map(embedding_and_word, options.embeddings or ()):
        pipe.load_textual_inversion(path, token=word)
    pipe.disable_perturbed_attention()  # which a checkpoint that was saved with it has on
    if options.pag_scale:
        pipe.enable_perturbed_attention(options.pag_scale, *([options.pag_layers] if options.pag_layers else []))
    return pipe


def _check_drawn_with(options: ResolvedOptions) -> None:
    """OptionError unless the options have the pictures that the model's pipeline draws with, as its index says."""
    from ..pipelines import pipeline_of
    from ..pipelines.tasks import task_of

    name = pipeline_of(options.model, options.task)
    task, missing = task_of(name), []
    if options.image is None and not task.startswith("text-to-image"):
        missing += ["{image}", "{mask}"] if task.startswith("inpainting") else ["{image}"]
    own = Path(options.model).expanduser() / "controlnet"
    if "with ControlNet" in task and not options.controlnet:
        missing += ["{controlnet} {own}" if own.is_dir() else "{controlnet}", "{control_image}"]
    if missing:
        rule = f"{{model}} is a {{name}}, which does {{task}}: give it {', '.join(missing)} too."
        raise OptionError("model", rule, model=options.model, name=name, task=task, own=own)


def dtype_for(
    asked: str | None,
    model: str,
    device: Any,
    *,
    planned: bool,
    say: Callable[[str], object] = lambda line: None,
) -> Any:
    """The torch dtype that was asked for, or the device's usual one: by measurement, unless a budget decides
    (`planned`), or the model is the packaged one, which is small and looks the same everywhere. `say` gets a line where
    it was measured. A plan has its own."""
    import torch

    from ..device.capabilities import usual_dtype

    if asked is not None:
        return getattr(torch, asked)
    if model == DEMO or planned:
        return usual_dtype(torch.device(device))
    from ..plan.usual import faster_dtype

    return faster_dtype(torch.device(device), say)


class Drawer:
    """Draws with an opened pipeline: any options that `opened_with` says are the same. Calls take turns by themselves
    where weights travel; what they set of the pipeline (scheduler, syntax of prompts) they set anew each time, so that
    two threads must not draw at once.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._own_scheduler = pipe.scheduler

    def draw(self, options: ResolvedOptions, given: Given = Given(), on_step: Any = None) -> Drawn:  # noqa: B008 - frozen
        """One picture. `on_step` is a `callback_on_step_end`: what it raises ends the drawing, as within one step.

        Where decoding fails, the error has the denoised latents in `latents` (see `keep_latents`).
        """
        return self.draw_together([options], given, on_step)[0]

    def draw_together(
        self,
        several: Sequence[ResolvedOptions],
        given: Given = Given(),  # noqa: B008 - frozen
        on_step: Callable[..., Any] | None = None,
    ) -> list[Drawn]:
        """Pictures of one call, equal to those drawn one by one but for rounding; their records have the seconds of the
        whole call. ConfigError where they differ in more than prompts and seed."""
        first = several[0]
        own = {name: getattr(first, name) for name in OWN_OF_EACH}
        if any(replace(each, **own) != first for each in several):
            raise ConfigError(f"pictures of one call differ in {', '.join(OWN_OF_EACH)} alone: draw others by another.")
        pipe = self.pipe
        pipe.prompt_syntax = first.prompt_syntax
        pipe.scheduler = self._scheduler(first.scheduler)
        output = pipe(**_arguments(pipe, several, given, on_step))
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(several)
        return [
            Drawn(image, record_of(pipe, options, image.size, pipe.last_times, given), bool(flag))
            for options, image, flag in zip(several, output.images, flagged, strict=True)
        ]

    def keep_latents(self, error: Exception, options: ResolvedOptions, given: Given, folder: Path) -> Path | None:
        """Where decoding failed with `error`: what was denoised is put on disk, for `leandiffusion decode`, under the
        path that is returned. None where the error has no latents."""
        kept = self.latents_of(error, options, given)
        return None if kept is None else save_latents(*kept, folder, slug(options.prompt))

    def latents_of(self, error: Exception, options: ResolvedOptions, given: Given) -> tuple[Any, PictureRecord] | None:
        """Where decoding failed with `error`: what was denoised, and what its picture would have said of itself. None
        where the error has no latents."""
        latents = getattr(error, "latents", None)
        if latents is None:
            return None
        side = self.pipe.vae_scale_factor
        size = latents.shape[-1] * side, latents.shape[-2] * side
        return latents, record_of(self.pipe, options, size, {}, given)

    def _scheduler(self, name: str | None) -> Any:
        from ..schedulers import build

        return self._own_scheduler if name is None else build(name, self._own_scheduler.config)


def _arguments(
    pipe: Any, several: Sequence[ResolvedOptions], given: Given, on_step: Callable[..., Any] | None
) -> Mapping[str, Any]:
    """What the pipeline is called with: one text and one generator for one picture, lists for several."""
    import torch

    first = several[0]
    prompts = [options.prompt for options in several]
    negatives = [options.negative_prompt or "" for options in several]
    generators = [torch.Generator("cpu").manual_seed(options.seed) for options in several]
    one = len(several) == 1
    asked = {
        "prompt": prompts[0] if one else prompts,
        "negative_prompt": (negatives[0] if one else negatives) if any(negatives) else None,
        "generator": generators[0] if one else generators,
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance_scale,
        "callback_on_step_end": on_step,
        **given.arguments(pipe, first),
        **controlnet.arguments(first),
        **ip_adapter.arguments(pipe, first, given.seen),
    }
    return {name: value for name, value in asked.items() if value is not None}
