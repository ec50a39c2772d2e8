"""What kind of file a .safetensors is, by the names of its tensors: for errors that say what was given instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """`title` has its article, as in 'a LoRA'; `use` says what to do with such a file, and is empty where nothing can
    be done with it here."""

    title: str
    use: str = ""


def _usable(with_what: str, flag: str) -> str:
    return f"use it with {with_what}, or on the command line with {flag} FILE"


_AS_FOLDER = "put it into a pipeline folder beside its config.json"

MODEL = Kind("a whole checkpoint", _usable("from_single_file", "--model"))
LORA = Kind("a LoRA", _usable("load_lora_weights of a pipeline", "--lora"))
CONTROLNET = Kind("a ControlNet", _usable("ControlNetModel.from_single_file", "--controlnet"))
IP_ADAPTER = Kind("an IP-Adapter", _usable("load_ip_adapter of a pipeline", "--ip-adapter"))
INVERSION = Kind("a textual inversion", _usable("load_textual_inversion of a pipeline", "--embedding"))
VAE = Kind("a VAE", _usable("vae=FILE when a model is opened", "--vae"))
TINY_VAE = Kind("a tiny VAE", VAE.use)

_LORA = re.compile(r"[._]lora[._]|^lora_|\.(hada|lokr)_|\.dora_scale$")
_INVERSIONS = ({"emb_params"}, {"clip_l"}, {"clip_g"}, {"clip_l", "clip_g"})

Names = set[str]


def _begin(*prefixes: str) -> Callable[[Names], bool]:
    return lambda names: any(name.startswith(prefixes) for name in names)


def _are_vectors(names: Names) -> bool:
    """Diffusers' textual inversions call their only tensor by the word, which is no path of modules."""
    return names in _INVERSIONS or (len(names) == 1 and "." not in next(iter(names)))


_KINDS: tuple[tuple[Callable[[Names], bool], Kind], ...] = (
    (_are_vectors, INVERSION),
    (_begin("image_proj.", "ip_adapter."), IP_ADAPTER),  # those of Face ID hold a LoRA too
    (lambda names: any(_LORA.search(name) for name in names), LORA),
    (_begin("joint_blocks.", "model.diffusion_model.joint_blocks."), Kind("a Stable Diffusion 3 model")),
    (_begin("double_blocks.", "model.diffusion_model.double_blocks."), Kind("a Flux model")),
    (_begin("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders."), MODEL),
    (_begin("control_model.", "input_hint_block.", "controlnet_cond_embedding."), CONTROLNET),  # beside down_blocks
    (_begin("encoder.layers.", "decoder.layers."), TINY_VAE),
    (_begin("encoder.down", "decoder.up", "first_stage_model."), VAE),
    (_begin("down_blocks."), Kind("a UNet in the diffusers layout", _AS_FOLDER)),
    (_begin("text_model."), Kind("a text encoder alone", _AS_FOLDER)),
    (_begin("vision_model."), Kind("an image encoder", "use it as image_encoder_folder of load_ip_adapter")),
)
"""The first that fits counts."""


def kind_of(names: Iterable[str]) -> Kind | None:
    """What holds tensors of these names; None where that is not known."""
    found = set(names)
    return next((kind for fits, kind in _KINDS if fits(found)), None)


def mistaken(where: object, names: Iterable[str], wanted: Kind) -> str | None:
    """'x is a LoRA, expected a ControlNet: use it with …' where the names are those of another kind than `wanted`."""
    kind = kind_of(names)
    if kind is None or kind == wanted:
        return None
    return f"{where} is {kind.title}, expected {wanted.title}: {kind.use or 'it is of no use here'}."
