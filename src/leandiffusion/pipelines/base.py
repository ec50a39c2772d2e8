"""What the pipelines share in drawing: from a request to pictures, and checks against the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.errors import ConfigError
from ..core.malloc import trim
from ..core.notices import warn
from ..device.host import is_host
from ..device.streams import synchronize
from ..families import editing
from ..families.conditioner import Conditioner, for_each_picture, require
from ..families.emphasis import PLAIN, check_syntax
from ..families.encode import encode_text
from ..families.prompt_cache import PromptCache
from ..families.prompts import Reading, each_once
from ..measure.clock import StageClock, Watch
from ..run import inputs
from ..run.callback import Callback
from ..run.conditioning import Tensors
from ..run.decoding import decode_raw, keeping, to_unit
from ..run.encoding import Encoded, encode
from ..run.guidance import Guidance
from ..run.run import Control, Run
from ..run.schedule import order_of, set_timesteps, steps_of
from ..run.tasks.base import Task
from ..weights.residence import read_weights
from .absent import Absent
from .assembly import Assembly
from .callbacks import take_old_callback
from .compat import ForScripts
from .images import check_output_type, to_output
from .inversion import TextualInversion
from .ip_adapter import IPAdapters
from .lora import Lora
from .lora_saving import LoraSaving
from .memory_and_speed import MemoryAndSpeed
from .perturbed import PerturbedAttentionGuidance
from .planning import Planning
from .request import Request
from .running import Running
from .shapes import Shapes

P = ParamSpec("P")
R = TypeVar("R")


def undisturbed(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator of methods that run networks: techniques do not change meanwhile, and where weights travel calls in
    several threads take turns."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        pipe: Any = args[0]
        with pipe._stack.call():
            pipe._place_lora()
            return method(*args, **kwargs)

    return run


def drawing(method: Callable[P, R]) -> Callable[P, R]:
    """`undisturbed`, without gradients, and with a warning where torch.autocast is on. Takes the older callback too."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        pipe: Any = args[0]
        take_old_callback(kwargs)
        if torch.is_autocast_enabled(pipe.device.type):
            warnings.warn(
                "torch.autocast is on: it casts weights again at every use and may overflow. Weights in half precision "
                "are faster and safer: open the pipeline with dtype=torch.float16 and leave autocast out.",
                stacklevel=2,
            )
        with pipe._stack.call(), torch.no_grad():
            pipe._place_lora()
            return method(*args, **kwargs)

    return run


class DiffusionPipeline(
    Running, MemoryAndSpeed, Lora, LoraSaving, IPAdapters, PerturbedAttentionGuidance, Planning, Assembly,
    TextualInversion, Shapes, ForScripts, Absent,
):  # fmt: skip
    """Base of the pipelines; its own `from_pretrained` picks the one that a checkpoint asks for.

    `last_times` holds the seconds per stage of the most recent finished call. `watch`, when set, is called with the
    name of each stage ('encode', 'image', 'picture', 'denoise', 'decode', 'safety'); the context manager it returns is
    entered around the stage. `prompt_cache` keeps what text encoders made of the latest texts; None keeps nothing.
    """

    conditioner: ClassVar[type[Conditioner]]
    """How this family makes conditioning of a prompt."""

    callback_tensors: ClassVar[tuple[str, ...]] = ()
    unet: Any
    vae: Any
    safety_checker: Any = None
    _heeds_force_upcast: ClassVar[bool] = False  # whether the VAE's config is to be believed that float16 overflows

    def __init__(self, components: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        Running.__init__(self)
        Assembly.__init__(self, components, settings)
        self.last_times: dict[str, float] = {}
        self.watch: Watch | None = None
        self._prompt_syntax = PLAIN
        self.prompt_cache: PromptCache | None = PromptCache()
        self._progress_bar_config: dict[str, Any] = {}
        # Outlives a UNet that is replaced by an object without a config.
        self._sample_size = getattr(getattr(self.unet, "config", None), "sample_size", None) or 64

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call makes an unconditional and a conditional prediction in each step."""
        return Guidance.of(self).doubles

    @property
    def prompt_syntax(self) -> str:
        """How prompts are read: 'plain' as diffusers reads them, up to the tokens that a text encoder takes at once, or
        'weighted', with weights such as (word:1.3) and of any length. May be set."""
        return self._prompt_syntax

    @prompt_syntax.setter
    def prompt_syntax(self, name: str) -> None:
        self._prompt_syntax = check_syntax(name)

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Arguments for tqdm, such as `disable=True`, `desc=` or `leave=False`."""
        self._progress_bar_config = settings

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> tqdm:
        """A tqdm bar over `iterable`, or over `total` steps, as `set_progress_bar_config` configured it."""
        if iterable is None and total is None:
            raise ConfigError("progress_bar needs something to count: pass an iterable or total=.")
        return tqdm(iterable, total=total, **self._progress_bar_config)

    # -- one call ----------------------------------------------------------------------------------------------------

    def _draw(self, request: Request, task: Task, controls: Sequence[Control] = ()) -> tuple[Any, list[bool] | None]:
        """Encode, denoise, decode -> pictures as `output_type` asks, and which were flagged if that was checked."""
        clock, flagged = self._clock(), None
        with self._begin(request, task, controls) as (call, run):
            besides_text = call._conditions_besides_text(request, run)
            with clock.stage("encode"):
                self._condition(call, request, run, besides_text)
            self._trim()
            if self._sees(request):
                with clock.stage("image"):
                    run.controls.append(self._with_room(lambda: call._image_prompt(request)))
                self._trim()
            if task.has_pictures:
                with clock.stage("picture"):
                    task.prepare(run, partial(self._encode_pictures, call.vae))
                self._trim()
            with clock.stage("denoise"), call.progress_bar(total=run.length) as bar:
                images = run.denoise(bar.update)
            self._trim()
            if request.output_type != "latent":
                with keeping(images):
                    with clock.stage("decode"):
                        images = self._decode(call.vae, images)
                    if call.safety_checker is not None:
                        with clock.stage("safety"):
                            images, flagged = call._withhold(images)
                    images = to_unit(images)
            images = to_output(images, request.output_type)
        self.last_times = clock.seconds
        return images, flagged

    def _condition(self, call: Any, request: Request, run: Run, besides_text: tuple[Tensor, ...]) -> None:
        """Encode the request's texts, each once, and have the run go on with them."""
        script = self._script(request, run.length)
        if len(script) > 1:
            length = self._length(request, call.do_classifier_free_guidance, run.length)
            call._call_reading = replace(self._reading(), encoding=each_once(self._reading().encoding), least=length)
        texts: dict[int, Tensors] = {}
        for arguments in script:
            if id(arguments) not in texts:
                encoded = self._with_room(lambda arguments=arguments: call.encode_prompt(
                    **arguments, device=self.device, num_images_per_prompt=request.images_per_prompt,
                    do_classifier_free_guidance=call.do_classifier_free_guidance, clip_skip=request.clip_skip,
                ))  # fmt: skip
                texts[id(arguments)] = self.conditioner.tensors(*encoded, *besides_text)
        if len(script) == 1:
            run.condition_on(texts[id(script[0])])
        else:
            run.follow([texts[id(arguments)] for arguments in script])

    def _script(self, request: Request, steps: int) -> list[dict[str, Any]]:
        """The request's prompts in each of so many steps, the same object where they are the same; one for all steps
        where nothing changes."""
        arguments = request.prompt_arguments
        if self.prompt_syntax == PLAIN or not editing.any_changes(arguments):
            return [arguments]
        script = editing.by_step(arguments, steps)
        return script if any(row is not script[0] for row in script) else script[:1]

    @contextmanager
    def _begin(self, request: Request, task: Task, controls: Sequence[Control]) -> Iterator[tuple[Any, Run]]:
        """This call's own view of the pipeline, which is what callbacks receive (see `running`), and its run.

        ConfigError when the model cannot do what is asked.
        """
        require(self, "unet", "scheduler")
        if task.has_pictures:
            require(self, "vae")
        if request.output_type != "latent":
            require(self, "vae", otherwise="ask for output_type='latent'")
        inputs.check_names("callback_on_step_end_tensor_inputs", request.callback_inputs, self.callback_tensors)
        shape = self._shape_latents(request, task)
        inputs.check_latents(request.latents, shape)
        self._check_width(request.prompt_embeds)
        self._check_image_prompt(request)
        with self._lora_scaled(request.lora_scale), self._call(**request.settings) as call:
            laid_out = set_timesteps(
                call.scheduler, request.num_inference_steps, self.device,
                timesteps=request.timesteps, sigmas=request.sigmas, end=request.denoising_end,
            )  # fmt: skip
            timesteps = task.timesteps(call.scheduler, laid_out)
            call._num_timesteps = len(timesteps)
            guided, perturbation = call.do_classifier_free_guidance, self._perturbation()
            tokens = self._length(request, guided, steps_of(len(timesteps), order_of(call.scheduler)))
            self._plan_request(request, shape, guided=guided, tokens=tokens, pictures=task.encodes(shape[1]))
            self._with_room(lambda: self._read_weights(request))
            function = request.callback_on_step_end
            run = Run(
                model=call, task=task, conditioning_of=self.conditioner.conditioning, shape=shape, timesteps=timesteps,
                step_options={"eta": request.eta, "generator": request.generator},
                callback=function and Callback(function, request.callback_inputs, self.callback_tensors),
                make_room=None if self.plan is None else self._fall_back, controls=list(controls),
                perturbation=perturbation,
            )  # fmt: skip
            self._stack.subject.prepare(run)
            yield call, run

    @drawing
    def decode(self, latents: Tensor, output_type: str = "pil") -> Any:
        """Denoised latents (B, C, h, w), as `output_type='latent'` gives them or an error kept them in `.latents`, ->
        pictures as `output_type` asks."""
        require(self, "vae")
        check_output_type(output_type)
        read_weights([self.vae])
        with keeping(latents):
            return to_output(to_unit(self._decode(self.vae, latents.to(self.device))), output_type)

    def _decode(self, vae: Any, latents: Tensor) -> Tensor:
        return self._with_room(lambda: decode_raw(vae, latents, upcast=self._upcasts(vae)))

    def _encode_pictures(self, vae: Any, pictures: Tensor) -> Encoded:
        return self._with_room(lambda: encode(vae, pictures, upcast=self._upcasts(vae)))

    def _upcasts(self, vae: Any) -> bool:
        return self._heeds_force_upcast and bool(getattr(vae.config, "force_upcast", False))

    def _read_weights(self, request: Request) -> None:
        """Read the weights of all networks that the call runs, if nothing did yet: what is wrong with a file shows
        before the first step, not after the last."""
        unused = ("vae", "safety_checker") if request.output_type == "latent" else ()
        if request.prompt_embeds is not None:
            unused = (*unused, "text_encoder", "text_encoder_2")
        read_weights(network for name, network in self._stack.subject.networks.items() if name not in unused)

    def _encode(
        self, prompt: Any, device: torch.device | str | None, count: int, guided: bool, clip_skip: int | None
    ) -> tuple[Any, ...]:
        """A prompt, as this family's conditioner takes it -> its embeddings `count` times, on the device."""
        encoded = self.conditioner.of(self).encode(
            prompt, guided=guided, clip_skip=clip_skip, reading=self._reading()
        )  # fmt: skip
        return for_each_picture(encoded, count, self.device if device is None else torch.device(device), self.dtype)

    def _prompt_of(self, arguments: Mapping[str, Any]) -> Any:
        """What this family's conditioner takes, of the arguments that say what to draw."""
        raise NotImplementedError

    def _length(self, request: Request, guided: bool, steps: int) -> int:
        """Tokens of the texts that the call is conditioned on in so many steps. What is wrong with a weighted prompt
        shows here."""
        if request.prompt_embeds is not None:
            return request.prompt_embeds.shape[1]
        if self.prompt_syntax == PLAIN:
            return 1  # no more than an encoder reads at once
        conditioner, reading = self.conditioner.of(self), self._reading()
        prompts = {id(arguments): self._prompt_of(arguments) for arguments in self._script(request, steps)}
        return max(conditioner.length(prompt, guided=guided, reading=reading) for prompt in prompts.values())

    def _reading(self) -> Reading:
        if (own := vars(self).get("_call_reading")) is not None:
            return own
        encoding = encode_text if self.prompt_cache is None else self.prompt_cache.encode
        return Reading(self.prompt_syntax, self._give_notice, encoding)

    def _conditions_besides_text(self, request: Any, run: Run) -> tuple[Tensor, ...]:
        """What the conditioner's `tensors` take after the embeddings, checked before anything is encoded."""
        return ()

    def _give_notice(self, texts: list[str]) -> None:
        """Warn of what this model does not know in `texts`, if it came with a way to tell."""
        notices = [self.notice(text) for text in texts] if self.notice is not None else []
        for notice in dict.fromkeys(filter(None, notices)):
            warn(notice)

    def _trim(self) -> None:
        """Between stages on a CPU: what one freed would otherwise lie beneath the peak of the next."""
        if is_host(self.device):
            trim()

    def _clock(self) -> StageClock:
        return StageClock(partial(synchronize, self.device), self.watch)
