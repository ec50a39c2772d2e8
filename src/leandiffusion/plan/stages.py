"""The stages of a call on networks without weights: what each computes and holds.

The code that draws runs on the meta device, with whatever was switched on there: slices, strips, attention kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.malloc import HIGHEST, LARGE, MEDIUM
from ..device.host import is_host
from ..families.encode import encode_text
from ..modules.controlnet import ControlNetModel
from ..modules.processors import attention_layers
from ..modules.text import CLIPTextModel
from ..modules.text_memory import keys_and_values, remembering
from ..modules.unet import UNet2DConditionModel
from ..modules.vae import AutoencoderKL
from ..modules.vae_tiny import AutoencoderTiny
from ..run.conditioning import Conditioning
from ..run.controls import Guide, Guides
from ..run.decoding import decode
from ..run.encoding import encode
from ..run.guidance import embedding_width
from ..run.perturbation import Perturbation, PerturbedAttention
from ..run.run import Run
from ..run.size import CallSize
from ..run.tasks.text_to_image import TextToImage
from .parts import travelling_layers
from .repeats import repeated_blocks
from .trace import trace
from .work import StageWork

TEXTS = ("text_encoder", "text_encoder_2")

HOLES = {LARGE: 0.4, MEDIUM: 0.9, HIGHEST: 0.9}
"""What lies between blocks that the C library keeps, as a share of the most that they take at one time, by the size
from which freed blocks go back: holes that small objects made too small, and that blocks of other sizes left. Where
those from LARGE on go back memory is trimmed all the while. Measured in steps and decodes of Stable Diffusion 1.5 and
the demo model, where others than 0.9 (0.6 to 1.3) come now and then."""

CONTROLS = "controlnet"
"""The component's name; several have a number behind it, 'controlnet.0'."""

OWNERS = {
    "encode": TEXTS, "image": ("unet",), "picture": ("vae",), "control": (CONTROLS,), "denoise": ("unet",),
    "decode": ("vae",),
}  # fmt: skip
"""What is traced by itself, and the networks that run in it. 'control' is the part of a step that ControlNets are, and
'image' what IP-Adapters make of pictures for the UNet (`plan.seeing`)."""

TOKENS = 77  # that CLIP reads, where there is no text encoder to ask

LATENTS = 4
"""Of the latents' size: themselves, what the UNet sees of them, and predictions that schedulers keep."""


def trace_stages(
    networks: Mapping[str, nn.Module], call: CallSize, device: torch.device | str = "cpu"
) -> dict[str, StageWork]:
    """The work of 'encode', 'picture', one step of 'control' and of 'denoise', and 'decode', for networks on the meta
    device by their names.

    `device` is the one that meta stands for: the ways that are taken on a CPU differ from an accelerator's, and what
    kernels take for themselves is known of CPUs only. What such a call does not have, or has no network for, is left
    out. ConfigError for networks of other kinds than this library's.
    """
    there = [stage for stage in stages_of(call) if stage != "image" and owners_of(stage, networks)]
    return {stage: trace_stage(stage, networks, call, device) for stage in there}


def trace_stage(
    stage: str, networks: Mapping[str, nn.Module], call: CallSize, device: torch.device | str = "cpu", *,
    part_bytes: int | None = None,
) -> StageWork:  # fmt: skip
    """One of the stages, as `trace_stages` has them. `part_bytes`: what heavy layers are computed in parts of
    (`offload.parts`), if they are."""
    _check(networks)
    on_host = is_host(device)
    make = {
        "encode": _encoding, "picture": _picture, "control": _controlling, "denoise": _denoising, "decode": _decoding,
    }[stage]  # fmt: skip
    run_stage, before = make(networks, call)
    owners = [networks[name] for name in owners_of(stage, networks)]
    with travelling_layers(owners, part_bytes), repeated_blocks(owners):
        return trace(run_stage, before, on_host=on_host, holes=HOLES if on_host else None)


def stages_of(call: CallSize) -> list[str]:
    """What such a call consists of, in order."""
    absent = {"image": not call.image_prompts, "picture": not call.pictures, "control": not call.controls}
    return [stage for stage in OWNERS if not absent.get(stage)]


def owners_of(stage: str, networks: Mapping[str, Any]) -> list[str]:
    """Names of the networks that run in a stage, among those that are there."""
    there = [name for name in networks if networks[name] is not None]
    return [name for owner in OWNERS[stage] for name in there if name == owner or name.startswith(f"{owner}.")]


def _check(networks: Mapping[str, Any]) -> None:
    kinds: dict[str, tuple[type[Any], ...]] = {
        "unet": (UNet2DConditionModel,),
        "vae": (AutoencoderKL, AutoencoderTiny),
        **dict.fromkeys(TEXTS, (CLIPTextModel,)),
        **dict.fromkeys(owners_of("control", networks), (ControlNetModel,)),
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
        for _ in range(1 + guided(networks, call)):
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


@dataclass
class _Model:
    """What a run asks of a pipeline, whose scheduler gives latents on as they are."""

    unet: Any
    scheduler: Any
    guidance_scale: float
    guidance_rescale: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.device


class _NoScheduler:
    def scale_model_input(self, x: Tensor, _: Tensor) -> Tensor:
        return x


def _run(networks: Mapping[str, Any], call: CallSize) -> Run:
    """A run that is past its first step: keys and values of the text are there, and what ControlNets made of their
    pictures."""
    unet = networks["unet"]
    model: Any = _Model(unet, _NoScheduler(), 7.5 if call.guidance else 1.0)
    height, width = _latent_size(networks, call)
    text, inputs = unet_inputs(networks, call.batch * (1 + guided(networks, call)), call.chunks)
    nets = [networks[name] for name in owners_of("control", networks)][: call.controls]
    pictures = [_empty(1, net.config.conditioning_channels, call.height, call.width, dtype=net.dtype) for net in nets]
    run = Run(
        model=model, task=TextToImage(), conditioning_of=lambda _: Conditioning(text, inputs.get("added_cond_kwargs")),
        shape=(call.batch, unet.config.in_channels, height, width), timesteps=_empty(1, dtype=torch.float32),
        controls=[Guides([Guide(*each) for each in zip(nets, pictures, strict=True)])] if nets else [],
        perturbation=_perturbation(unet) if call.perturbed else None,
    )  # fmt: skip
    run.condition_on({})
    memory = run.text_memory
    with remembering(memory):
        for network in (unet, *nets) if memory is not None else ():
            for name, layer in attention_layers(network):
                if name.endswith("attn2"):
                    keys_and_values(layer, text)
    return run


def _perturbation(unet: Any) -> Perturbation:
    """At the layers where it is usual; at all in a network that has none there. It is about equal for memory."""
    usual = any(name.startswith("mid") for name, _ in attention_layers(unet))
    return Perturbation(PerturbedAttention(layers=("mid" if usual else "attn1",)))


def _latents(run: Run) -> list[Tensor]:
    return [_empty(*run.shape, dtype=run.model.dtype) for _ in range(LATENTS)]


def _controlled(run: Run, latents: Tensor) -> list[Mapping[str, Any]]:
    """What ControlNets give the UNet in a step."""
    given = torch.cat([latents, latents]) if run.guidance.doubles else latents
    with remembering(run.text_memory):
        return [control(run, given, 0) for control in run.controls]


def _controlling(networks: Mapping[str, Any], call: CallSize) -> Stage:
    """The ControlNets' part of a step after the first."""

    def before() -> tuple[Any, ...]:
        run = _run(networks, call)
        latents = _latents(run)
        _controlled(run, latents[0])  # which embeds their pictures
        return run, latents

    return lambda run, latents: _controlled(run, latents[0]), before


def _denoising(networks: Mapping[str, Any], call: CallSize) -> Stage:
    """One prediction as `run.run.Run.predict` makes it, at a step after the first, with what ControlNets gave."""

    def before() -> tuple[Any, ...]:
        run = _run(networks, call)
        latents = _latents(run)
        given = _controlled(run, latents[0])
        if given:
            run.controls = [lambda *_: given[0]]
        return run, latents

    return lambda run, latents: run.predict(latents[0], 0), before


def _picture(networks: Mapping[str, Any], call: CallSize) -> Stage:
    """What `run.encoding` makes of pictures, by a VAE that has its encoder."""
    vae = networks["vae"]

    def before() -> tuple[Tensor]:
        return (_empty(call.pictures, 3, call.height, call.width, dtype=_dtype(networks)),)

    return lambda pictures: encode(vae, pictures, upcast=_upcasts(networks)), before


def _decoding(networks: Mapping[str, Any], call: CallSize) -> Stage:
    """What `run.decoding` makes of latents."""
    vae = networks["vae"]

    def before() -> tuple[Tensor]:
        height, width = _latent_size(networks, call)
        return (_empty(call.batch, vae.config.latent_channels, height, width, dtype=_dtype(networks)),)

    return lambda latents: decode(vae, latents, upcast=_upcasts(networks)), before


def _dtype(networks: Mapping[str, Any]) -> torch.dtype:
    """That of latents and pictures."""
    unet = networks.get("unet")
    return networks["vae"].dtype if unet is None else unet.dtype


def _upcasts(networks: Mapping[str, Any]) -> bool:
    return networks.get("text_encoder_2") is not None and bool(networks["vae"].config.force_upcast)


def guided(networks: Mapping[str, Any], call: CallSize) -> bool:
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
