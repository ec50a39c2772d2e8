"""The stages of a call on networks without weights: what each computes and holds.

The code that draws runs on the meta device, with whatever was switched on there: slices, strips, attention kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..device.host import is_host
from ..families.encode import encode_text
from ..modules.processors import attention_layers
from ..modules.text import CLIPTextModel
from ..modules.text_memory import TextMemory, keys_and_values, remembering
from ..modules.unet import UNet2DConditionModel
from ..modules.vae import AutoencoderKL
from ..modules.vae_tiny import AutoencoderTiny
from ..run.decoding import decode
from ..run.guidance import Guidance, embedding_width, is_ours
from ..run.size import CallSize
from .trace import trace
from .work import StageWork

TEXTS = ("text_encoder", "text_encoder_2")

SLACK = 0.4
"""Of the blocks that the C library keeps, what lies between them: holes that small objects made too small. 0.3 to 0.5
were measured in steps and decodes of Stable Diffusion 1.5 and the demo model, and up to 0.8 now and then."""

OWNERS = {"encode": TEXTS, "denoise": ("unet",), "decode": ("vae",)}
"""The stages, and the networks that run in each."""

TOKENS = 77  # that CLIP reads, where there is no text encoder to ask

LATENTS = 4
"""Of the latents' size: themselves, what the UNet sees of them, and predictions that schedulers keep."""


def trace_stages(
    networks: Mapping[str, nn.Module], call: CallSize, device: torch.device | str = "cpu"
) -> dict[str, StageWork]:
    """The work of 'encode', of one step of 'denoise' and of 'decode', for networks on the meta device by their names.

    `device` is the one that meta stands for: the ways that are taken on a CPU differ from an accelerator's, and what
    kernels take for themselves is known of CPUs only. A stage without a network is left out. ConfigError for networks
    of other kinds than this library's.
    """
    there = {stage for stage, names in OWNERS.items() if any(networks.get(name) is not None for name in names)}
    return {stage: trace_stage(stage, networks, call, device) for stage in OWNERS if stage in there}


def trace_stage(
    stage: str, networks: Mapping[str, nn.Module], call: CallSize, device: torch.device | str = "cpu", *,
    given_back: bool = False,
) -> StageWork:  # fmt: skip
    """One of the stages, as `trace_stages` has them. `given_back`: freed memory goes back to the system all the while
    (`core.malloc`), as where weights come from disk, and not only where the VAE's slices or strips have it so."""
    _check(networks)
    on_host = is_host(device)
    make = {"encode": _encoding, "denoise": _denoising, "decode": _decoding}[stage]
    return trace(*make(networks, call), on_host=on_host, slack=SLACK if on_host else 0.0, given_back=given_back)


def _check(networks: Mapping[str, Any]) -> None:
    kinds: dict[str, tuple[type[Any], ...]] = {
        "unet": (UNet2DConditionModel,),
        "vae": (AutoencoderKL, AutoencoderTiny),
        **dict.fromkeys(TEXTS, (CLIPTextModel,)),
    }
    for name, kind in kinds.items():
        network = networks.get(name)
        if network is None:
            continue
        if not isinstance(network, kind):
            raise ConfigError(
                f"{name} is a {type(network).__name__}, whose work cannot be told before it runs: expected a "
                f"{kind[0].__name__} of this library."
            )
        if network.device.type != "meta":
            raise ConfigError(f"{name} is on {network.device}: expected a network without weights, on 'meta'.")


Stage = tuple[Callable[..., object], Callable[[], Any]]
"""What runs, and what is made and held before: its arguments."""


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _encoding(networks: Mapping[str, Any], call: CallSize) -> Stage:
    """Each encoder for the texts, and for the negative ones."""
    encoders = [networks[name] for name in TEXTS if networks.get(name) is not None]
    both = networks.get("text_encoder_2") is not None

    def run() -> list[Any]:
        kept = []
        for _ in range(1 + _guided(networks, call)):
            for encoder in encoders:
                ids = _empty(call.batch * call.chunks, encoder.config.max_position_embeddings, dtype=torch.int64)
                kept.append(encode_text(encoder, ids, penultimate=both))
        return kept

    return run, lambda: ()


def unet_inputs(networks: Mapping[str, Any], rows: int, chunks: int = 1) -> tuple[Tensor, dict[str, Any]]:
    """Text (rows, chunks * T, C) for the UNet among the networks, and the inputs that it takes by name: those of a
    distilled network, and SDXL's."""
    config, dtype = networks["unet"].config, networks["unet"].dtype

    def make(*shape: int) -> Tensor:
        return _empty(rows, *shape, dtype=dtype)

    inputs: dict[str, Any] = {}
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = make(config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": make(pooled), "time_ids": make(6)}
    return make(chunks * tokens_read(networks), _context(config)), inputs


def _denoising(networks: Mapping[str, Any], call: CallSize) -> Stage:
    """One prediction as `run.run.Run.predict` makes it, at a step after the first: keys and values of the text are
    there."""
    unet = networks["unet"]
    config, dtype = unet.config, unet.dtype
    guided = _guided(networks, call)
    rows = call.batch * (1 + guided)
    height, width = _latent_size(networks, call)

    def before() -> tuple[Any, ...]:
        text, inputs = unet_inputs(networks, rows, call.chunks)
        latents = [_empty(call.batch, config.in_channels, height, width, dtype=dtype) for _ in range(LATENTS)]
        memory = TextMemory(text) if is_ours(unet) else None
        with remembering(memory):
            for name, layer in attention_layers(unet) if memory is not None else ():
                if name.endswith("attn2"):
                    keys_and_values(layer, text)
        return text, inputs, latents, memory

    def run(text: Tensor, inputs: Any, latents: list[Tensor], memory: TextMemory | None) -> Tensor:
        sample = latents[0] if memory is not None or not guided else torch.cat(latents[:1] * 2)
        with remembering(memory):
            predicted = unet(sample, _empty(dtype=torch.float32), text, **inputs).sample
        return Guidance(7.5).combine(predicted) if guided else predicted

    return run, before


def _decoding(networks: Mapping[str, Any], call: CallSize) -> Stage:
    """What `run.decoding` makes of latents."""
    vae = networks["vae"]
    upcast = networks.get("text_encoder_2") is not None and bool(vae.config.force_upcast)
    unet = networks.get("unet")
    dtype = vae.dtype if unet is None else unet.dtype

    def before() -> tuple[Tensor]:
        height, width = _latent_size(networks, call)
        return (_empty(call.batch, vae.config.latent_channels, height, width, dtype=dtype),)

    return lambda latents: decode(vae, latents, upcast=upcast), before


def _guided(networks: Mapping[str, Any], call: CallSize) -> bool:
    """Whether each step predicts twice: not for a network that takes the scale as an input."""
    return call.guidance and embedding_width(networks.get("unet")) is None


def _latent_size(networks: Mapping[str, Any], call: CallSize) -> tuple[int, int]:
    vae = networks.get("vae")
    factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
    return call.height // factor, call.width // factor


def tokens_read(networks: Mapping[str, Any]) -> int:
    """Tokens that a text encoder among the networks reads at once."""
    encoder = next((networks[name] for name in TEXTS if networks.get(name) is not None), None)
    return TOKENS if encoder is None else int(encoder.config.max_position_embeddings)


def _context(config: Any) -> int:
    """Channels of the text that the UNet reads."""
    context = config.cross_attention_dim
    return context if isinstance(context, int) else context[0]
