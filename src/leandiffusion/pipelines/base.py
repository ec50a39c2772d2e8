"""What the pipelines share in running: this call's own state, checks against the model, the denoising loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, ClassVar, ParamSpec, Self, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.errors import ConfigError
from ..core.notices import warn
from ..device.streams import synchronize
from ..measure.clock import StageClock, Watch
from ..schedulers import randn
from . import inputs
from .absent import Absent
from .assembly import Assembly
from .callbacks import take_old_callback
from .compat import ForScripts
from .finite import check_finite
from .memory_and_speed import MemoryAndSpeed
from .request import Request
from .running import Running
from .stages import Conditioning, Guidance, denoise, embed_guidance, set_timesteps

P = ParamSpec("P")
R = TypeVar("R")


def undisturbed(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator of methods that run networks: techniques do not change meanwhile, and where weights travel calls in
    several threads take turns."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        pipe: Any = args[0]
        with pipe._stack.call():
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
            return method(*args, **kwargs)

    return run


class DiffusionPipeline(Running, MemoryAndSpeed, Assembly, ForScripts, Absent):
    """Base of the pipelines; its own `from_pretrained` picks the one that a checkpoint asks for.

    `last_times` holds the seconds per stage of the most recent finished call. `watch`, when set, is called with the
    name of each stage ('encode', 'denoise', 'decode', 'safety'); the context manager that it returns is entered around
    the stage.
    """

    callback_tensors: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "negative_prompt_embeds")
    unet: Any
    vae: Any
    _timesteps: Tensor
    _latent_shape: tuple[int, int, int, int]

    def __init__(self, components: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        Running.__init__(self)
        Assembly.__init__(self, components, settings)
        self.last_times: dict[str, float] = {}
        self.watch: Watch | None = None
        self._progress_bar_config: dict[str, Any] = {}
        # Outlives a UNet that is replaced by an object without a config.
        self._sample_size = getattr(getattr(self.unet, "config", None), "sample_size", None) or 64

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call predicts with and without the words."""
        return self._guidance.doubles

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side; 8 where there is no VAE to ask."""
        return 8 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Arguments for tqdm, such as `disable=True`, `desc=` or `leave=False`."""
        self._progress_bar_config = settings

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> tqdm:
        """A tqdm bar over `iterable`, or over `total` steps, as `set_progress_bar_config` configured it."""
        if iterable is None and total is None:
            raise ConfigError("progress_bar needs something to count: pass an iterable or total=.")
        return tqdm(iterable, total=total, **self._progress_bar_config)

    # -- one call ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _begin(self, request: Request) -> Iterator[Self]:
        """This call's own view of the pipeline, which is what callbacks receive. See `running`.

        ConfigError when the model cannot do what is asked.
        """
        self._require("unet", "scheduler")
        if request.output_type != "latent":
            self._require("vae", otherwise="ask for output_type='latent'")
        inputs.check_names("callback_on_step_end_tensor_inputs", request.callback_inputs, self.callback_tensors)
        latent_shape = self._shape_latents(request)
        inputs.check_latents(request.latents, latent_shape)
        self._check_width(request.prompt_embeds)
        with self._call(**request.settings) as call:
            call._latent_shape = latent_shape
            call._timesteps = set_timesteps(
                call.scheduler, request.num_inference_steps, self.device,
                timesteps=request.timesteps, sigmas=request.sigmas, end=request.denoising_end,
            )  # fmt: skip
            call._num_timesteps = len(call._timesteps)
            yield call

    def _require(self, *names: str, otherwise: str = "") -> None:
        """ConfigError unless these components are there. `otherwise` says how to do without."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            fix = f"set pipe.{missing[0]} = …{', or ' * bool(otherwise)}{otherwise}"
            raise ConfigError(f"this pipeline has no {' and no '.join(missing)}, which this needs: {fix}.")

    def _shape_latents(self, request: Request) -> tuple[int, int, int, int]:
        """Shape (B, C, h, w) of the latents for the size asked for, the model's own unless given."""
        config, factor = getattr(self.unet, "config", None), self.vae_scale_factor
        own = getattr(config, "sample_size", None) or self._sample_size
        own_height, own_width = (own, own) if isinstance(own, int) else own
        height = own_height * factor if request.height is None else request.height
        width = own_width * factor if request.width is None else request.width
        inputs.check_side("height", height, factor)
        inputs.check_side("width", width, factor)
        latent = getattr(getattr(self.vae, "config", None), "latent_channels", None)
        channels = getattr(config, "in_channels", None) or getattr(self.unet, "in_channels", None) or latent or 4
        if latent is not None and channels != latent:
            raise ConfigError(
                f"the UNet takes {channels} channels and the VAE's latents have {latent}: this is an inpainting or "
                "depth model, which needs more than a text to draw. Open a text-to-image model."
            )
        return request.batch, channels, height // factor, width // factor

    @property
    def _picture_size(self) -> tuple[int, int]:
        """Height and width in pixels of the running call's pictures."""
        _, _, h, w = self._latent_shape
        return h * self.vae_scale_factor, w * self.vae_scale_factor

    def _check_width(self, prompt_embeds: Tensor | None) -> None:
        """ConfigError for embeddings of another text encoder than the UNet was trained with."""
        width = getattr(getattr(self.unet, "config", None), "cross_attention_dim", None)
        if prompt_embeds is not None and isinstance(width, int) and prompt_embeds.shape[-1] != width:
            raise ConfigError(
                f"prompt_embeds has {prompt_embeds.shape[-1]} channels and this UNet reads {width}: encode the prompt "
                "with this pipeline's encode_prompt."
            )

    def _give_notice(self, texts: Sequence[str]) -> None:
        """Warn of what this model does not know in `texts`, if it came with a way to tell."""
        notices = [self.notice(text) for text in texts] if self.notice is not None else []
        for notice in dict.fromkeys(filter(None, notices)):
            warn(notice)

    def _spread(self, device: torch.device | str | None, count: int, **embeddings: Tensor | None) -> list[Any]:
        """Each of the embeddings `count` times per prompt, on the device and at the pipeline's dtype.

        NonFiniteError for those that hold no numbers, or none of that dtype.
        """
        place = self.device if device is None else torch.device(device)
        spread: list[Any] = []
        why = "the text encoder's numbers left the range of its dtype, its weights are damaged, or such embeddings were"
        for name, given in embeddings.items():
            spread.append(None if given is None else given.to(place, self.dtype).repeat_interleave(count, dim=0))
            check_finite(name, spread[-1], f"{why} passed. Use dtype=torch.bfloat16 or torch.float32.")
        return spread

    def _clock(self) -> StageClock:
        return StageClock(partial(synchronize, self.device), self.watch)

    @property
    def _distilled(self) -> bool:
        return getattr(getattr(self.unet, "config", None), "time_cond_proj_dim", None) is not None

    @property
    def _guidance(self) -> Guidance:
        return Guidance(self._guidance_scale, self._guidance_rescale, self._distilled)

    def _guidance_input(self) -> Tensor | None:
        """The guidance scale as an input (B, D) of a distilled UNet; None for others."""
        if not self._distilled:
            return None
        dim = self.unet.config.time_cond_proj_dim
        scales = torch.full((self._latent_shape[0],), float(self._guidance_scale))
        return embed_guidance(scales, dim, self.dtype).to(self.device)

    def _noise(self, request: Request) -> Tensor:
        """Starting noise at the scheduler's scale, drawn as diffusers draws it, or the caller's at that scale."""
        noise = request.latents
        if noise is None:
            noise = randn(self._latent_shape, generator=request.generator, device=self.device, dtype=self.dtype)
        scaled = noise.to(self.device, self.dtype) * self.scheduler.init_noise_sigma
        check_finite("the starting latents", scaled, "pass noise of variance 1, or leave latents out.")
        return scaled

    def _denoise(self, request: Request, conditioning: Conditioning, tensors: dict[str, Tensor | None]) -> Tensor:
        """Run the denoising loop with progress bar and callback. `tensors` are those that the callback may ask for."""
        order, count = getattr(self.scheduler, "order", 1), len(self._timesteps)

        with self.progress_bar(total=math.ceil(count / order)) as bar:

            def after_step(i: int, t: Tensor, latents: Tensor) -> Tensor:
                if request.callback_on_step_end is not None:
                    tensors.update(latents=latents, prompt_embeds=conditioning.embeds)
                    seen = {name: tensors[name] for name in request.callback_inputs}
                    changed = self._check_changes(request.callback_on_step_end(self, i, t, seen))
                    tensors.update(changed)
                    latents = changed.get("latents", latents)
                    self._take_changes(conditioning, tensors)
                if (i + 1) % order == 0 or i == count - 1:
                    bar.update()
                return latents

            return denoise(
                lambda: (self.unet, self.scheduler, self._guidance), self._timesteps, self._noise(request),
                conditioning, step_arguments={"eta": request.eta, "generator": request.generator},
                after_step=after_step, stop=lambda: self.interrupt,
            )  # fmt: skip

    def _check_changes(self, changed: Any) -> Mapping[str, Tensor]:
        """What a callback returned, if it is nothing or a dict of tensors that it may change."""
        changed = {} if changed is None else changed
        if not isinstance(changed, Mapping):
            raise ConfigError(f"the callback returned a {type(changed).__name__}: return a dict of tensors, or None.")
        inputs.check_names("what the callback returned", changed, self.callback_tensors)
        return changed

    def _take_changes(self, conditioning: Conditioning, tensors: Mapping[str, Any]) -> None:
        """Go on with what a callback changed besides latents."""
        conditioning.embeds = tensors["prompt_embeds"]


AutoPipelineForText2Image = DiffusionPipeline
