"""An order: pictures that were asked for, whichever contract asked. Checked and planned before it becomes a job."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..device.memory import is_out_of_memory
from ..drawing.given import Given
from ..drawing.opening import OWN_OF_EACH
from ..drawing.options import DrawingOptions, ResolvedOptions, resolve, steps_run
from ..drawing.wrong import OptionError
from .errors import ApiError
from .jobs import Job, Stopped
from .models import STEPS, Models, seconds_for
from .uploads import Upload, check_picture

if TYPE_CHECKING:
    from ..drawing.opening import Drawn
    from ..plan.plan import Plan

log = logging.getLogger(__name__)

PREVIEW = 32
"""The longest side of the latents that unfinished pictures are made of: they take what a picture of 256 pixels does,
which is less than the plan has for decoding a larger one."""

_CHUNK = 75  # tokens of a weighted prompt that are read at once, each of a byte or more


@dataclass(frozen=True)
class Finished:
    """Picture number `index` is there."""

    index: int
    drawn: Drawn


@dataclass(frozen=True)
class Partial:
    """Picture number `index` as it is between two steps: number `number` of those that are shown."""

    index: int
    number: int
    image: Any


@dataclass(frozen=True)
class Order:
    """`count` pictures, each with the next seed, of the model called `options.model`.

    `shown` unfinished ones are shown of each. `plan` is how they are drawn.
    """

    options: ResolvedOptions
    given: Given
    plan: Plan
    steps: int
    count: int = 1
    shown: int = 0
    together: int = 1
    """How many such orders may be drawn at once."""
    memory: int | None = None
    """Bytes to draw within, where they are less than the server's."""

    @property
    def key(self) -> Any:
        """Equal for orders that may be drawn at once; None for one that is drawn by itself."""
        if self.count > 1 or self.shown or self.given.image is not None:
            return None
        own = dict.fromkeys(OWN_OF_EACH)
        return self.plan.call, self.memory, tuple(sorted({**vars(self.options), **own}.items()))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.plan.call.width, self.plan.call.height

    def as_job(self, job_id: str, models: Models, hear: Any = None) -> Job:
        """The job that draws it."""
        pixels = math.prod(self.size) / 1e6
        each = seconds_for(self.plan.prediction, self.steps)
        return Job(
            job_id, self.options.model, lambda job: draw(self, models, job), steps=self.count * self.steps,
            units=pixels * self.steps * self.count, predicted=each * self.count, hear=hear, key=self.key,
            most=self.together, together=lambda jobs: draw_together(models, jobs), load=self,
        )  # fmt: skip


def prepare(
    models: Models, options: DrawingOptions, uploads: Mapping[str, Upload], *, count: int = 1, shown: int = 0,
    names: Mapping[str, str], share: float = 1.0, crowded: bool = False, memory: int | None = None,
) -> Order:  # fmt: skip
    """Check what is asked for, read its pictures, and plan it. Takes no memory but the pictures'.

    `options.model` is a name of `models`, `uploads` are the 'image' and the 'mask'; `names` gives the fields' names
    where the contract has others than our options; steps are multiplied by `share` where none are asked for. Where
    there is a crowd, such pictures are drawn several at once if that is known to be better (`Models.together`).
    `memory` is what to draw within, where it is less than the server's budget. Any thread may ask: those that come
    with pictures take turns in reading them.
    ApiError for what is wrong, BudgetError for what does not fit.
    """
    name, source = models.source(options.model)
    for field, upload in uploads.items():
        check_picture(field, upload)
    with _as_told(names):
        pictures = {field: field for field in uploads}
        resolved = resolve(replace(options, model=source, **pictures))
        blueprint = models.blueprint(name)
        width, height = resolved.width or blueprint.side, resolved.height or blueprint.side
        with models.reading:
            given = Given.read(resolved, {field: upload.data for field, upload in uploads.items()})
            given, (width, height) = _at_size(given, resolved, width, height)
    steps = resolved.steps or STEPS
    resolved = replace(
        resolved, model=name, width=width, height=height,
        steps=max(1, round(steps * share)) if options.steps is None else steps,
    )  # fmt: skip
    _check_task(blueprint, resolved)
    with _as_told(names):
        run = steps_run(resolved)
    assert run
    call = _call(resolved, blueprint)
    plan = models.plan(name, call, memory)
    order = Order(resolved, given, plan, run, count, shown, memory=memory)
    return replace(order, together=models.together(name, call, memory)) if crowded and order.key else order


def _at_size(given: Given, options: ResolvedOptions, width: int, height: int) -> tuple[Given, tuple[int, int]]:
    """Pictures as large as what is drawn, so that no larger ones wait in the queue."""
    from ..pictures.reading import fitting, resized

    if given.image is None or options.padding_mask_crop is not None:  # then it is drawn into the picture as it is
        return given, (width, height)
    how = options.resize or "fit"
    if how == "fit":
        (width, height), how = fitting(given.image.size, width, height), "stretch"
    image, mask = (each and resized(each, width, height, how) for each in (given.image, given.mask))
    return replace(given, image=image, mask=mask), (width, height)


def _check_task(blueprint: Any, options: ResolvedOptions) -> None:
    """ApiError where the model was trained to fill in parts of pictures, and is asked for something else."""
    channels = blueprint.networks["unet"].config.get("in_channels", 4)
    latent = blueprint.networks["vae"].config.get("latent_channels", 4)
    if channels != latent and options.mask is None:
        raise ApiError(
            f"the model {options.model!r} draws parts of pictures: send image and mask to /v1/images/edits.",
            param="model",
        )  # fmt: skip


def _call(options: ResolvedOptions, blueprint: Any) -> Any:
    from ..run.size import CallSize

    scale = options.guidance_scale
    guided = (scale is None or scale > 1) and not blueprint.is_distilled
    longest = max(len(text.encode()) for text in (options.prompt, options.negative_prompt or ""))
    chunks = max(1, math.ceil(longest / _CHUNK)) if options.prompt_syntax == "weighted" else 1
    assert options.width is not None
    assert options.height is not None
    return CallSize(options.height, options.width, 1, guided, chunks, pictures=int(options.image is not None))


@contextmanager
def _as_told(names: Mapping[str, str]) -> Iterator[None]:
    """Options that are wrong under the names that the client knows them by."""
    try:
        yield
    except OptionError as error:
        field = names.get(error.field, error.field)
        told = error.told(lambda option: names.get(option, option))
        raise ApiError(f"{field}: {told}", param=field) from None


def draw(order: Order, models: Models, job: Job) -> list[Drawn]:
    """The work of its job: picture after picture, each told when it is there."""
    drawer = models.drawer(order.options.model, order.options.task, order.plan)
    pictures: list[Drawn] = []
    for index in range(order.count):
        job.next_picture()
        options = replace(order.options, seed=order.options.seed + index)
        drawn = drawer.draw(options, order.given, _Watching(job, order, index))
        pictures.append(drawn)
        job.tell(Finished(index, drawn))
    return pictures


def draw_together(models: Models, jobs: Sequence[Job]) -> list[list[Drawn]]:
    """The work of several jobs at once: their pictures are those that they would be alone, but for rounding."""
    orders: list[Order] = [job.load for job in jobs]
    first = orders[0]
    plan = models.plan(first.options.model, replace(first.plan.call, batch=len(orders)), first.memory)
    drawer = models.drawer(first.options.model, first.options.task, plan)
    pictures = drawer.draw_together([order.options for order in orders], first.given, partial(_all_step, jobs))
    for job, drawn in zip(jobs, pictures, strict=True):
        job.notes.append(f"drawn with {len(jobs) - 1} others at once: alone it would differ by rounding.")
        job.tell(Finished(0, drawn))
    return [[drawn] for drawn in pictures]


def _all_step(jobs: Sequence[Job], pipe: Any, i: int, t: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A `callback_on_step_end` for all of them: ends the drawing when nobody wants a picture of it any more."""
    if _ends_step(pipe, i):
        wanted = 0
        for job in jobs:
            with suppress(Stopped):
                job.step()
                wanted += 1
        if not wanted:
            raise Stopped
    return {}


def _ends_step(pipe: Any, i: int) -> bool:
    """Whether it is the last of the UNet's calls of a step as users count them."""
    return not (i + 1) % getattr(pipe.scheduler, "order", 1) or i + 1 >= pipe.num_timesteps


class _Watching:
    """A `callback_on_step_end`: ends a drawing that is not wanted any more, and shows what there is so far."""

    def __init__(self, job: Job, order: Order, index: int) -> None:
        self.job, self.order, self.index, self._number = job, order, index, 0

    def __call__(self, pipe: Any, i: int, t: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        if not _ends_step(pipe, i):
            return {}
        per_step = getattr(pipe.scheduler, "order", 1)
        steps = math.ceil(pipe.num_timesteps / per_step)
        self.job.steps = self.order.count * steps
        self.job.step()
        self._show(pipe, i // per_step + 1, steps, tensors)
        return {}

    def _show(self, pipe: Any, done: int, steps: int, tensors: Mapping[str, Any]) -> None:
        if self._number >= self.order.shown or done >= steps:
            return
        if done >= steps * (self._number + 1) / (self.order.shown + 1):
            from ..pipelines.preview import Preview

            number, self._number = self._number, self._number + 1
            height, width = (side * pipe.vae_scale_factor for side in tensors["latents"].shape[-2:])

            def tell(step: int, images: Any) -> None:
                self.job.tell(Partial(self.index, number, images[0].resize((width, height))))

            try:
                Preview(pipe.vae, tell, longest=PREVIEW)(pipe, done - 1, None, tensors)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._number = self.order.shown
                log.warning("no more previews", extra={"job": self.job.id, "about": str(error)})
