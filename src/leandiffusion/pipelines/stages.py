"""The three stages of drawing as plain functions: encode the words, denoise latents, decode the picture.

Nothing here keeps state or knows which techniques are on; the pipelines put the stages together.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, NonFiniteError
from ..device.host import is_host
from ..device.memory import is_out_of_memory, release
from ..modules.blocks import sinusoid
from ..modules.vae import AutoencoderKL
from .finite import found_wrong


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022): `scale` 1 or less switches it off.

    `rescale` in [0, 1] pulls the guided prediction's contrast back (Lin et al. 2023, sec. 3.4). `distilled` networks
    take the scale as an input and are never run twice.
    """

    scale: float
    rescale: float = 0.0
    distilled: bool = False

    @property
    def doubles(self) -> bool:
        """Whether each step predicts twice: without and with the words."""
        return self.scale > 1 and not self.distilled


@dataclass
class Conditioning:
    """What the UNet hears besides latents and time. Under guidance each batch is doubled: without words, with words.

    `embeds` (B, T, C); `added` is SDXL's pooled text and sizes; `timestep_cond` (B, D) a distilled model's guidance.
    """

    embeds: Tensor
    added: Mapping[str, Tensor] | None = None
    timestep_cond: Tensor | None = None


AfterStep = Callable[[int, Tensor, Tensor], Tensor]
"""(step index, timestep, latents) -> latents to go on with."""


# -- encode ----------------------------------------------------------------------------------------------------------


def tokenize(tokenizer: Any, texts: list[str], length: int | None = None, name: str = "prompt") -> Tensor:
    """Texts -> ids (B, T), padded and cut to `length` (the tokenizer's own unless given), warning of what was cut.

    ConfigError for a `length` beyond what the encoder reads: that of embeddings which were encoded in pieces.
    """
    length, most = int(length or tokenizer.model_max_length), tokenizer.model_max_length
    if length > most:
        raise ConfigError(
            f"prompt_embeds has {length} tokens and the text encoder reads {most}, so {name} cannot be encoded at that "
            f"length: pass negative embeddings of the same shape too, such as '' encoded and repeated to {length} "
            "tokens, or guidance_scale=1."
        )
    for text in texts:
        whole = tokenizer([text], padding=False, truncation=False)["input_ids"][0]
        if len(whole) > length:
            lost = tokenizer.decode(whole[length - 1 : -1])
            warnings.warn(
                f"{name} has {len(whole)} tokens and the text encoder reads {length}: this part was cut off and has "
                f"no effect: {lost!r}",
                stacklevel=2,
            )
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def check_clip_skip(clip_skip: Any, text_encoder: Any, *, penultimate: bool) -> None:
    """ConfigError unless `clip_skip` is None or a number of layers that the encoder can go without."""
    most = text_encoder.config.num_hidden_layers - penultimate
    whole = isinstance(clip_skip, int) and not isinstance(clip_skip, bool)
    if clip_skip is not None and not (whole and 0 <= clip_skip <= most):
        raise ConfigError(f"clip_skip={clip_skip!r}: pass 0 to {most}, the layers to leave out at the end.")


def encode_text(
    text_encoder: Any, ids: Tensor, *, clip_skip: int | None = None, penultimate: bool = False
) -> tuple[Tensor, Tensor]:
    """Ids (B, T) -> embeddings (B, T, C), and the encoder's first output: (B, P) of one that projects.

    SD1 and SD2 read the last layer's normalised output, or with `clip_skip` an earlier layer's, normalised too; SDXL
    (`penultimate`) the layer before the last as it is, counting `clip_skip` from there.
    """
    ids = ids.to(text_encoder.device)
    if not penultimate and clip_skip is None:
        output = text_encoder(ids)
        return output[0], output[0]
    output = text_encoder(ids, output_hidden_states=True)
    hidden = output.hidden_states[-(clip_skip or 0) - 1 - penultimate]
    if penultimate:
        return hidden, output[0]
    body = getattr(text_encoder, "text_model", text_encoder)  # transformers 5 has no inner text_model
    return body.final_layer_norm(hidden), output[0]


def both_halves(without: Tensor | None, with_words: Tensor) -> Tensor:
    """The batch of one step: both halves under guidance, else the words alone."""
    return with_words if without is None else torch.cat([without, with_words])


def embed_guidance(scales: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Guidance scales (B,) as an input of a distilled network, (B, dim): Meng et al. 2023, sec. 3.1."""
    return sinusoid(1000 * (scales.float() - 1), dim, flip_sin_to_cos=False, freq_shift=1).to(dtype)


# -- denoise ---------------------------------------------------------------------------------------------------------


def accepted_by(step: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function takes by name."""
    accepted = inspect.signature(step).parameters
    return {name: value for name, value in arguments.items() if name in accepted}


def set_timesteps(
    scheduler: Any,
    steps: int | None,
    device: torch.device,
    *,
    timesteps: list[int] | None = None,
    sigmas: list[float] | None = None,
    end: float | None = None,
) -> Tensor:
    """Lay out the schedule: `steps`, or the caller's own `timesteps` or `sigmas`. Returns the timesteps.

    `end` in (0, 1) leaves out those past that share of the training schedule, for a second model to go on.
    """
    own = {name: value for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None}
    for name in own:
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ConfigError(f"{type(scheduler).__name__} takes no {name}: leave it out or choose another scheduler.")
    scheduler.set_timesteps(**(own or {"num_inference_steps": steps}), device=device)
    if end is None or end == 1:
        return scheduler.timesteps
    train = scheduler.config.num_train_timesteps
    kept = int((scheduler.timesteps >= round(train - end * train)).sum())
    if not kept:
        raise ConfigError(f"denoising_end={end} leaves none of the {len(scheduler.timesteps)} steps: raise it.")
    return scheduler.timesteps[:kept]


def predict(unet: Any, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: Guidance) -> Tensor:
    """One guided prediction for scaled latents x (B, C, h, w) at timestep t -> (B, C, h, w).

    ConfigError when `conditioning` is not for B pictures, twice that under guidance.
    """
    doubled = guidance.doubles
    rows = len(x) * (1 + doubled)
    if len(conditioning.embeds) != rows:
        raise ConfigError(
            f"prompt_embeds has {len(conditioning.embeds)} rows and this step predicts {rows}: a callback that "
            "switches guidance off keeps the second half of it, and of SDXL's add_text_embeds and add_time_ids."
        )
    optional = {"timestep_cond": conditioning.timestep_cond, "added_cond_kwargs": conditioning.added}
    inputs = {name: value for name, value in optional.items() if value is not None}  # foreign UNets may take none
    output = unet(torch.cat([x, x]) if doubled else x, t, encoder_hidden_states=conditioning.embeds, **inputs)
    prediction = output.sample if hasattr(output, "sample") else output[0]
    if not doubled:
        return prediction
    without, with_words = prediction.chunk(2)
    guided = without + guidance.scale * (with_words - without)
    return rescale_contrast(guided, with_words, guidance.rescale) if guidance.rescale > 0 else guided


def rescale_contrast(guided: Tensor, reference: Tensor, amount: float) -> Tensor:
    """Bring `guided` (B, ...) towards the standard deviation of `reference`: Lin et al. 2023, equations 15 and 16."""
    axes = list(range(1, guided.ndim))
    matched = guided * (reference.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return amount * matched + (1 - amount) * guided


def denoise(
    parts: Callable[[], tuple[Any, Any, Guidance]],
    timesteps: Tensor,
    latents: Tensor,
    conditioning: Conditioning,
    *,
    step_arguments: Mapping[str, Any],
    after_step: AfterStep,
    stop: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Noise (B, C, h, w), scaled by the scheduler's init_noise_sigma -> latents.

    `parts` is asked before each step for the UNet, this run's own scheduler and the guidance, any of which a callback
    may have replaced. `step_arguments` (eta, generator) reach those schedulers whose `step` takes them. `after_step`
    may replace the latents, and through its closure the conditioning. When `stop` turns true, the remaining steps are
    left out.
    """
    predicted = torch.ones((), dtype=torch.bool, device=latents.device)  # whether all predictions were finite
    for i, t in enumerate(timesteps):
        if stop():
            break
        unet, scheduler, guidance = parts()
        prediction = predict(unet, scheduler.scale_model_input(latents, t), t, conditioning, guidance)
        predicted &= torch.isfinite(prediction).all()  # a scheduler that clips would hide infinity
        arguments = accepted_by(scheduler.step, step_arguments)
        latents = scheduler.step(prediction, t, latents, **arguments, return_dict=False)[0].to(latents.dtype)
        latents = after_step(i, t, latents)
        if is_host(latents.device):  # other devices would have to be waited for: there it shows at the end
            _check_finite(latents, predicted)
    _check_finite(latents, predicted)
    return latents


def _check_finite(latents: Tensor, predicted: Tensor) -> None:
    if not predicted or not torch.isfinite(latents).all():
        raise NonFiniteError(
            f"the denoised latents hold NaN or infinity ({latents.dtype}): the UNet's numbers left the range of its "
            "dtype. Use dtype=torch.bfloat16 or torch.float32, or a lower guidance_scale."
        )


# -- decode ----------------------------------------------------------------------------------------------------------


def decode(vae: Any, latents: Tensor, *, upcast: bool = False) -> Tensor:
    """Latents (B, C, h, w), as denoised -> pictures (B, 3, H, W) float32 in [0, 1]. See `decode_raw`."""
    return to_unit(decode_raw(vae, latents, upcast=upcast))


def to_unit(pictures: Tensor) -> Tensor:
    """Decoded pictures, which are in [-1, 1] or a little beyond, in [0, 1]; in place."""
    return pictures.div_(2).add_(0.5).clamp_(0, 1)


def decode_raw(vae: Any, latents: Tensor, *, upcast: bool = False) -> Tensor:
    """Latents (B, C, h, w), as denoised -> pictures (B, 3, H, W) float32 in [-1, 1] or a little beyond.

    A half-precision VAE whose result is no picture (`finite.found_wrong`) decodes again in float32, and with `upcast` a
    float16 one does so at once: SDXL's overflows, and says so as force_upcast. Where float32 does not fit, bfloat16
    takes its place, with a warning; so do strips where whole pictures do not fit. The VAE itself is left as it is.
    NonFiniteError if no other dtype helps.
    """
    overflows = upcast and vae.dtype == torch.float16
    picture = None if overflows else _decoded(vae, latents)
    dtype = vae.dtype
    wrong = None if picture is None else found_wrong(picture, latents)
    if picture is None or (wrong and dtype != torch.float32):
        picture, dtype = _decoded_wider(vae, latents)
        wrong = found_wrong(picture, latents)
    if wrong:
        raise NonFiniteError(
            f"the decoded picture {wrong} even in {str(dtype).removeprefix('torch.')}: the VAE's weights are damaged, "
            "or the latents are far outside the range it was trained on."
        )
    return picture.float()


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    """What the VAE makes of latents of unit variance, on which the UNet works; in strips if not at once."""
    z = latents.to(vae.dtype) / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    try:
        return vae.decode(z, return_dict=False)[0]
    except (MemoryError, RuntimeError) as error:
        if not isinstance(vae, AutoencoderKL) or vae.use_tiling or not is_out_of_memory(error):
            raise
    release()  # only here: in the handler above the failed attempt's tensors are still held
    warnings.warn(
        "decoding did not fit in memory and goes on in strips: pipe.enable_vae_tiling() does so from the start.",
        stacklevel=2,
    )
    strips = copy.copy(vae)  # the same weights: calls in other threads go on using the VAE as it is
    strips.use_tiling = strips.use_slicing = True
    return strips.decode(z, return_dict=False)[0]


def _decoded_wider(vae: Any, latents: Tensor) -> tuple[Tensor, torch.dtype]:
    """Decoded by a float32 copy, or where that does not fit by a bfloat16 one, whose range is as wide; and which."""
    try:
        return _decoded(_copied(vae, latents.device, torch.float32), latents), torch.float32
    except (MemoryError, RuntimeError) as error:
        if vae.dtype == torch.bfloat16 or not is_out_of_memory(error):
            raise
    release()
    warnings.warn("decoding in float32 did not fit in memory: this picture is decoded in bfloat16.", stacklevel=2)
    return _decoded(_copied(vae, latents.device, torch.bfloat16), latents), torch.bfloat16


def _copied(vae: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A copy, at that dtype, of what decoding needs; calls in other threads go on using the VAE as it is."""
    unneeded = [getattr(vae, name, None) for name in ("encoder", "quant_conv")]
    return copy.deepcopy(vae, {id(part): torch.nn.Identity() for part in unneeded if part is not None}).to(
        device, dtype
    )
