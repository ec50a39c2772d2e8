"""One drawing: what belongs to it, the one place where the UNet is called, and the denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.errors import BudgetError, ConfigError, NonFiniteError
from ..device.host import is_host
from ..device.memory import is_out_of_memory
from ..modules.text_memory import TextMemory, remembering
from .callback import Callback
from .conditioning import Conditioning, Tensors
from .guidance import Guidance, embed_guidance, embedding_width, is_ours
from .perturbation import Perturbation
from .schedule import accepted_by, order_of, steps_of
from .tasks.base import Task
from .text import Text


class Model(Protocol):
    """What a run asks anew before each step, because a callback may have replaced it: a pipeline, as its call sees it.

    `scheduler` is the call's own copy. `interrupt` turns true when the remaining steps are to be left out.
    """

    unet: Any
    vae: Any
    scheduler: Any

    @property
    def guidance_scale(self) -> float: ...
    @property
    def guidance_rescale(self) -> float: ...
    @property
    def interrupt(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...


Control = Callable[["Run", Tensor, int], Mapping[str, Any]]
"""(run, what the UNet sees (B, C, h, w), doubled under guidance, step) -> further keyword inputs of the UNet."""

UNetCall = Callable[["Run", Tensor, int, Mapping[str, Any]], Tensor]
"""(run, the UNet's input (B, C, h, w), step, its keyword inputs) -> its prediction (B, C, h, w)."""


def call_unet(run: Run, given: Tensor, i: int, inputs: Mapping[str, Any]) -> Tensor:
    """The UNet as it is now, called for step i."""
    output = run.model.unet(given, run.times[i], **inputs)
    return output.sample if hasattr(output, "sample") else output[0]


def always(i: int) -> bool:
    """Guidance in every step."""
    return True


@dataclass(eq=False, kw_only=True)
class Run:
    """What one drawing owns. It lasts as long as the call; whatever is computed once per drawing is kept here.

    `shape` (B, C, h, w) and `timesteps` (N,) are the latents' and the schedule's; `conditioning_of` makes the family's
    conditioning of `tensors`, which callbacks may change; `step_options` (eta, generator) reach those schedulers whose
    `step` takes them; `controls` add inputs to each call of the UNet, `perturbation` samples.

    Techniques may replace `guides`, which says of each call of the UNet whether guidance, where it is on, applies
    there, and `call`, which calls the UNet. What they put there lasts as long as the run, and must not hold the run.

    `make_room` is asked when memory runs out in a step: whether it changed something, so that the step is tried again.
    """

    model: Model
    task: Task
    conditioning_of: Callable[[Tensors], Conditioning]
    shape: tuple[int, int, int, int]
    timesteps: Tensor
    step_options: Mapping[str, Any] = field(default_factory=dict)
    callback: Callback | None = None
    controls: list[Control] = field(default_factory=list)
    perturbation: Perturbation | None = None
    guides: Callable[[int], bool] = always
    call: UNetCall = call_unet
    make_room: Callable[[Run], bool] | None = None
    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    times: tuple[Tensor, ...] = field(init=False)
    guidance_embedding: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        self.times = self.timesteps.unbind()
        self.order = order_of(self.scheduler)
        self.guidance_embedding = self._embed_guidance()
        self._stepped: Any = None
        self._accepted: dict[str, Any] = {}
        self._script: tuple[Text, ...] = ()

    @property
    def scheduler(self) -> Any:
        """The call's own scheduler, as it is now."""
        return self.model.scheduler

    @property
    def guidance(self) -> Guidance:
        """Guidance as it is now."""
        return Guidance.of(self.model)

    def guidance_at(self, i: int) -> Guidance:
        """Guidance of step i, as it is now: with a scale of 1 where `guides` leaves it out."""
        return self.guidance if self.guides(i) else replace(self.guidance, scale=1.0)

    @property
    def length(self) -> int:
        """Steps as users count them; a scheduler of a higher order calls the UNet several times in each."""
        return steps_of(len(self.times), self.order)

    @property
    def text_memory(self) -> TextMemory | None:
        """What layers made of the text; None for a UNet that remembers nothing (`is_ours`)."""
        return self._text.memory if is_ours(self.model.unet) else None

    @property
    def conditioning(self) -> Conditioning:
        """What the UNet is conditioned on besides time, as it is now."""
        return self._text.conditioning

    def condition_on(self, tensors: Tensors) -> None:
        """Go on with these tensors, all that the family's conditioning is made of, and to the end."""
        self.tensors = dict(tensors)
        self._text, self._script = Text(self.tensors, self.conditioning_of(self.tensors)), ()

    def follow(self, script: Sequence[Tensors]) -> None:
        """Go on with these tensors, one mapping for each step as users count them, the same one where the text is the
        same: what layers make of a text is kept as long as it comes again. A callback that changes one ends this."""
        texts = {id(tensors): Text(tensors, self.conditioning_of(tensors)) for tensors in script}
        self._script = tuple(texts[id(tensors)] for tensors in script)
        self.tensors, self._text = dict(script[0]), self._script[0]

    def _turn_page(self, i: int) -> None:
        """Go on with the text of step i, where a script says what it is."""
        step = i // self.order
        if not self._script or self._script[step] is self._text:
            return
        if self.make_room is not None or self._text not in self._script[step:]:  # a budget plans for one text's
            self._text.forget()
        self._text = self._script[step]
        self.tensors |= self._text.tensors

    def predict(self, x: Tensor, i: int) -> Tensor:
        """The guided prediction for latents x (B, c, h, w) at step i -> (B, c, h, w).

        ConfigError when the conditioning is not for B pictures, twice that under guidance.
        """
        guidance, conditioning, doubled = self.guidance_at(i), self.conditioning, self.guidance.doubles
        _check_rows(conditioning.embeds, len(x) * (1 + doubled))
        if doubled and not guidance.doubles:
            conditioning = conditioning.conditional
        memory = self._text.memory_of(conditioning.embeds)
        given = self.task.unet_input(self, x, i)
        ours = is_ours(self.model.unet)
        both = torch.cat([given, given]) if guidance.doubles and (self.controls or not ours) else given
        with remembering(memory if ours else None):
            inputs = self._inputs(conditioning, both, i)
            # ours takes one sample for both texts, also where controls, which saw both, add something for each
            prediction = self._call(given if ours else both, i, inputs)
        return guidance.combine(prediction) if guidance.doubles else prediction

    def _call(self, given: Tensor, i: int, inputs: Mapping[str, Any]) -> Tensor:
        if self.perturbation is None:
            return self.call(self, given, i, inputs)
        return self.perturbation.predict(self.call, self, given, i, inputs)

    def denoise(self, step_done: Callable[[], object] = lambda: None) -> Tensor:
        """Run the steps -> latents (B, c, h, w). `step_done` is called after each step as users count them.

        NonFiniteError when a prediction or the latents hold NaN or infinity.
        """
        x = self.task.first_latents(self)
        predicted = torch.ones((), dtype=torch.bool, device=x.device)  # whether all predictions were finite
        for i in range(len(self.times)):
            if self.model.interrupt:
                break
            self._turn_page(i)
            prediction = self._predict(x, i)
            predicted &= torch.isfinite(prediction).all()  # a scheduler that clips would hide infinity
            x = self.task.after_step(self, self._step(prediction, x, i), i)
            if self.callback is not None:
                x = self._call_back(self.callback, x, i)
            if (i + 1) % self.order == 0 or i == len(self.times) - 1:
                step_done()
            if is_host(x.device):  # other devices would have to be waited for: there it shows at the end
                _check_finite(x, predicted)
        _check_finite(x, predicted)
        self._forget()  # what the steps kept is not to lie beside what decodes them
        return x

    def _predict(self, x: Tensor, i: int) -> Tensor:
        """`predict`, again and again while memory runs out and `make_room` finds some."""
        while True:
            try:
                return self.predict(x, i)
            except (MemoryError, RuntimeError) as error:
                if self.make_room is None or not is_out_of_memory(error):
                    raise
                reason = str(error)
            self._forget()
            if not self.make_room(self):  # only here: in the handler above the failed attempt's tensors are still held
                raise BudgetError(f"memory ran out in step {i + 1}, and no settings take less: {reason}")

    def _inputs(self, conditioning: Conditioning, given: Tensor, i: int) -> dict[str, Any]:
        """The UNet's keyword inputs, those of controls for `given`; what is None is left out, for UNets that take
        none."""
        inputs: dict[str, Any] = {
            "encoder_hidden_states": conditioning.embeds,
            "timestep_cond": self.guidance_embedding,
            "added_cond_kwargs": conditioning.added,
        }
        for control in self.controls:
            inputs.update(control(self, given, i))
        return {name: value for name, value in inputs.items() if value is not None}

    def _step(self, prediction: Tensor, x: Tensor, i: int) -> Tensor:
        scheduler = self.scheduler
        if scheduler is not self._stepped:  # the first step, or a callback has replaced it
            self._stepped, self._accepted = scheduler, accepted_by(scheduler.step, self.step_options)
        return scheduler.step(prediction, self.times[i], x, **self._accepted, return_dict=False)[0].to(x.dtype)

    def _call_back(self, callback: Callback, x: Tensor, i: int) -> Tensor:
        """Show the callback this step's tensors, and go on with what it changed."""
        changed = dict(callback(self.model, i, self.times[i], {**self.tensors, "latents": x}))
        x = changed.pop("latents", x)
        if any(tensor is not self.tensors[name] for name, tensor in changed.items()):
            self.condition_on(self.tensors | changed)
        self._forget()  # it may have written to weights or to the text
        return x

    def _forget(self) -> None:
        for text in (self._text, *self._script):
            text.forget()

    def _embed_guidance(self) -> Tensor | None:
        """The guidance scale as a distilled UNet takes it, (B, D); None for others."""
        width = embedding_width(self.model.unet)
        if width is None:
            return None
        scales = torch.full((self.shape[0],), float(self.model.guidance_scale))
        return embed_guidance(scales, width, self.model.dtype).to(self.model.device)


def _check_rows(embeds: Tensor, rows: int) -> None:
    if len(embeds) != rows:
        raise ConfigError(
            f"prompt_embeds has {len(embeds)} rows and this step predicts {rows}: a callback that switches guidance "
            "off keeps the second half of it, and of SDXL's add_text_embeds and add_time_ids."
        )


def _check_finite(latents: Tensor, predicted: Tensor) -> None:
    if not predicted or not torch.isfinite(latents).all():
        raise NonFiniteError(
            f"the denoised latents hold NaN or infinity ({latents.dtype}): the UNet overflowed. Use "
            "dtype=torch.bfloat16 or torch.float32, or a lower guidance_scale."
        )
