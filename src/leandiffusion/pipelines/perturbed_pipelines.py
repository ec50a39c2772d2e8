"""The pipelines under the names that diffusers gives those with perturbed-attention guidance: `pag_scale` in each call.

Each is the pipeline that it derives from, with the guidance on from the beginning. Every pipeline has it by
`enable_perturbed_attention`; these are for scripts that were written with diffusers' names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, Self, TypeVar

from ..run.inputs import check_number
from ..run.perturbation import PerturbedAttention
from .absent import unsupported
from .stable_diffusion import StableDiffusionPipeline
from .stable_diffusion_controlnet import StableDiffusionControlNetPipeline
from .stable_diffusion_controlnet_img2img import StableDiffusionControlNetImg2ImgPipeline
from .stable_diffusion_controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
from .stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from .stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from .stable_diffusion_xl import StableDiffusionXLPipeline
from .stable_diffusion_xl_controlnet import StableDiffusionXLControlNetPipeline
from .stable_diffusion_xl_controlnet_img2img import StableDiffusionXLControlNetImg2ImgPipeline
from .stable_diffusion_xl_controlnet_inpaint import StableDiffusionXLControlNetInpaintPipeline
from .stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline
from .stable_diffusion_xl_inpaint import StableDiffusionXLInpaintPipeline

C = TypeVar("C", bound=type)

PROCESSORS = "layers are left out without processors of their own: leave it out."

_asked: ContextVar[tuple[PerturbedAttention | None] | None] = ContextVar(
    "what this thread's call asks for", default=None
)


class WithPerturbedAttention:
    """Mixin in front of a pipeline, whose constructor takes `pag_applied_layers` and whose calls `pag_scale` (0 for
    no guidance) and `pag_adaptive_scale`.

    Calls that say neither are guided as `enable_perturbed_attention` said last: by 3.0, to begin with.
    """

    _is_perturbed_by_default = True
    _usual: PerturbedAttention | None = None
    pag_applied_layers: list[str]

    @property
    def perturbed_attention(self) -> PerturbedAttention | None:
        """Of the call that runs in this thread; outside of one, of calls that do not say."""
        asked = _asked.get()
        return self._usual if asked is None else asked[0]

    @perturbed_attention.setter
    def perturbed_attention(self, settings: PerturbedAttention | None) -> None:
        self._usual = settings
        if settings is not None:
            self.pag_applied_layers = list(settings.layers)

    @property
    def pag_scale(self) -> float:
        """What the call that runs is guided by; outside of one, calls that do not say."""
        return 0.0 if self.perturbed_attention is None else self.perturbed_attention.scale

    @property
    def pag_adaptive_scale(self) -> float:
        """What is taken off `pag_scale` per step of training that is past."""
        return 0.0 if self.perturbed_attention is None else self.perturbed_attention.adaptive_scale

    @property
    def do_perturbed_attention_guidance(self) -> bool:
        """Whether there is any."""
        return self.pag_scale > 0

    @property
    def do_pag_adaptive_scaling(self) -> bool:
        """Whether its scale changes from step to step."""
        return self.pag_scale > 0 and self.pag_adaptive_scale > 0

    @property
    def pag_attn_processors(self) -> dict[str, Any]:
        """Empty: layers are left out without processors of their own."""
        return {}

    def set_pag_applied_layers(self, pag_applied_layers: str | list[str], pag_attn_processors: Any = None) -> None:
        """Choose the layers that lose their self-attention in the next calls, as `enable_perturbed_attention` does.
        ConfigError for what are no texts; whether the UNet has them, calls say. NotSupported for processors."""
        unsupported({"pag_attn_processors": pag_attn_processors}, PROCESSORS)
        layers = [pag_applied_layers] if isinstance(pag_applied_layers, str) else list(pag_applied_layers)
        before = self._usual or PerturbedAttention()
        checked = PerturbedAttention(before.scale, tuple(layers), before.adaptive_scale)
        self.pag_applied_layers = layers
        if self._usual is not None:
            self._usual = checked

    @classmethod
    def from_pipe(cls, pipeline: Any, **changes: Any) -> Self:
        """As every pipeline's. The layers are the other's, if it has perturbed attention and none are given."""
        kept = getattr(pipeline, "perturbed_attention", None)
        if kept is not None:
            changes.setdefault("pag_applied_layers", list(kept.layers))
        return super().from_pipe(pipeline, **changes)  # type: ignore[misc]

    def _guided_as(self, pipeline: Any) -> None:
        kept = getattr(pipeline, "perturbed_attention", None)
        if kept is not None:
            self._usual = PerturbedAttention(kept.scale, tuple(self.pag_applied_layers), kept.adaptive_scale)

    def _asked_for(self, scale: float | None, adaptive: float | None) -> PerturbedAttention | None:
        """What a call is guided by. ConfigError for what are no numbers of 0 or more."""
        for name, value in (("pag_scale", scale), ("pag_adaptive_scale", adaptive)):
            if value is not None:
                check_number(name, value, 0, 1000)
        usual = self._usual or PerturbedAttention(0.0)
        scale = usual.scale if scale is None else scale
        adaptive = usual.adaptive_scale if adaptive is None else adaptive
        return PerturbedAttention(scale, tuple(self.pag_applied_layers), adaptive) if scale else None


def _longer(method: Callable[..., Any], *more: inspect.Parameter) -> inspect.Signature:
    own = inspect.signature(method)
    return own.replace(parameters=[*own.parameters.values(), *more])


def _named(name: str, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)


def perturbing(cls: C) -> C:
    """Class decorator: the constructor and the calls of the pipeline behind the mixin, with the further arguments."""
    inner: Any = cls.__bases__[1]

    @wraps(inner.__init__)
    def init(self: Any, *components: Any, pag_applied_layers: str | list[str] = "mid", **named: Any) -> None:
        inner.__init__(self, *components, **named)
        self._usual = PerturbedAttention()
        self.set_pag_applied_layers(pag_applied_layers)

    @wraps(inner.__call__)
    def call(
        self: Any, *given: Any, pag_scale: float | None = None, pag_adaptive_scale: float | None = None, **named: Any
    ) -> Any:
        token = _asked.set((self._asked_for(pag_scale, pag_adaptive_scale),))
        try:
            return inner.__call__(self, *given, **named)
        finally:
            _asked.reset(token)

    made: Any = cls
    made.__init__, made.__call__ = init, call
    init.__signature__ = _longer(inner.__init__, _named("pag_applied_layers", "mid"))  # type: ignore[attr-defined]
    call.__signature__ = _longer(  # type: ignore[attr-defined]
        inner.__call__, _named("pag_scale", None), _named("pag_adaptive_scale", None)
    )
    return cls


@perturbing
class StableDiffusionPAGPipeline(WithPerturbedAttention, StableDiffusionPipeline):
    """StableDiffusionPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionPAGImg2ImgPipeline(WithPerturbedAttention, StableDiffusionImg2ImgPipeline):
    """StableDiffusionImg2ImgPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionPAGInpaintPipeline(WithPerturbedAttention, StableDiffusionInpaintPipeline):
    """StableDiffusionInpaintPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionControlNetPAGPipeline(WithPerturbedAttention, StableDiffusionControlNetPipeline):
    """StableDiffusionControlNetPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionControlNetPAGImg2ImgPipeline(WithPerturbedAttention, StableDiffusionControlNetImg2ImgPipeline):
    """StableDiffusionControlNetImg2ImgPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionControlNetPAGInpaintPipeline(WithPerturbedAttention, StableDiffusionControlNetInpaintPipeline):
    """StableDiffusionControlNetInpaintPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionXLPAGPipeline(WithPerturbedAttention, StableDiffusionXLPipeline):
    """StableDiffusionXLPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionXLPAGImg2ImgPipeline(WithPerturbedAttention, StableDiffusionXLImg2ImgPipeline):
    """StableDiffusionXLImg2ImgPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionXLPAGInpaintPipeline(WithPerturbedAttention, StableDiffusionXLInpaintPipeline):
    """StableDiffusionXLInpaintPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionXLControlNetPAGPipeline(WithPerturbedAttention, StableDiffusionXLControlNetPipeline):
    """StableDiffusionXLControlNetPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionXLControlNetPAGImg2ImgPipeline(WithPerturbedAttention, StableDiffusionXLControlNetImg2ImgPipeline):
    """StableDiffusionXLControlNetImg2ImgPipeline with perturbed-attention guidance."""


@perturbing
class StableDiffusionXLControlNetPAGInpaintPipeline(WithPerturbedAttention, StableDiffusionXLControlNetInpaintPipeline):
    """StableDiffusionXLControlNetInpaintPipeline with perturbed-attention guidance."""
