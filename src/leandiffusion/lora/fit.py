"""What a LoRA file holds, fitted to networks: every layer found, every shape checked, before anything changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.errors import NotSupported, TensorMismatch
from ..modules.factors import KINDS, Kind
from ..modules.lora import can_adapt
from .names import layers_by_name
from .read import Layers, LoraFile, Source

WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Families by the width of the text that their UNet attends to."""

DORA = ("dora_scale", "lora_magnitude_vector")
FULL = ("diff", "diff_b")


@dataclass(frozen=True, eq=False)
class Piece:
    """What an adapter adds to one layer, at weight 1: factors, and their scale."""

    kind: Kind
    factors: Mapping[str, Source]
    scale: float


Pieces = dict[str, Piece]
"""By layer of a network."""


def fit(file: LoraFile, networks: Mapping[str, nn.Module]) -> dict[str, Pieces]:
    """The file's pieces by network and layer, for the `networks` that may have adapters.

    Raises TensorMismatch for layers that a network lacks, for shapes of other layers, for another family's LoRA (told
    which), and NotSupported for DoRA and whole differences of weights.
    """
    _check_family(file, networks)
    if lacking := [name for name in file.networks if name not in networks]:
        raise TensorMismatch(
            f"{file.where} is also for {' and '.join(lacking)}, which this pipeline has not: it has "
            f"{', '.join(networks) or 'no network that takes a LoRA'}."
        )
    return {name: _fit_one(file, name, layers, networks[name]) for name, layers in file.networks.items()}


def _fit_one(file: LoraFile, name: str, layers: Layers, network: nn.Module) -> Pieces:
    known = layers_by_name(network)
    if unknown := [layer for layer in layers if layer not in known]:
        some = ", ".join(unknown[:3]) + (" …" if len(unknown) > 3 else "")
        raise TensorMismatch(
            f"{file.where} changes {len(unknown)} layers that this {name} ({type(network).__name__}) has not: {some}. "
            "It was trained for another model."
        )
    pieces: Pieces = {}
    for given, factors in layers.items():
        layer = known[given]
        if layer in pieces:
            raise TensorMismatch(f"{file.where} has {layer} of the {name} twice, under two names.")
        pieces[layer] = _piece(file, name, layer, factors, network.get_submodule(layer))
    return pieces


def _piece(file: LoraFile, network: str, layer: str, found: Mapping[str, Source], module: nn.Module) -> Piece:
    place = f"{file.where}: {network}.{layer}"
    if any(name in found for name in DORA):
        raise NotSupported(
            f"{place} is a DoRA's, which also scales the columns of weights and is not supported: merge it into the "
            "model with the program that trained it."
        )
    if any(name in found for name in FULL):
        raise NotSupported(
            f"{place} holds a whole difference of the weight, not factors, which is not supported: merge it into the "
            "model with the program that trained it."
        )
    factors = {name: source for name, source in found.items() if name != "alpha"}
    kind = next((kind for kind in KINDS if any(name in factors for name in kind.first)), None)
    if kind is None or not factors.keys() <= {*kind.names}:
        raise TensorMismatch(f"{place} has {', '.join(factors) or 'no factors'}: not those of a LoRA, LoHa or LoKr.")
    if not can_adapt(module):
        raise NotSupported(
            f"{place} is a {type(module).__name__}, and factors are added to linear and convolution layers."
        )
    if strange := [name for name, source in found.items() if not _has_numbers(name, source)]:
        raise TensorMismatch(
            f"{place} has {strange[0]} of {found[strange[0]].dtype} and shape {found[strange[0]].shape}: factors are "
            "floating-point matrices, and an alpha is one number. The file is damaged: download it again."
        )
    factors = _shaped(factors, module)
    rank = _check(place, kind, factors, module)
    scale = 1.0
    if rank is not None:
        alpha = float(found["alpha"].read(torch.float32).reshape(-1)[0]) if "alpha" in found else None
        scale = (file.default_alpha(network, layer, rank) if alpha is None else alpha) / rank
    if not math.isfinite(scale):
        raise TensorMismatch(f"{place} has an alpha that is no number. The file is damaged: download it again.")
    return Piece(kind, factors, scale)


def _has_numbers(name: str, source: Source) -> bool:
    if name == "alpha":
        return math.prod(source.shape) == 1 and not source.dtype.is_complex
    return source.dtype.is_floating_point and len(source.shape) > 1


def _shaped(factors: Mapping[str, Source], module: nn.Module) -> dict[str, Source]:
    """LoRA's factors with the axes that the layer's weight has: files add axes of one pixel, or lack them."""
    axes = len(module.weight.shape)  # type: ignore[union-attr]
    shaped: dict[str, Source] = {}
    for name, source in factors.items():
        shape = source.shape
        if name in ("down", "up"):
            if axes == 2 and len(shape) == 4 and shape[2:] == (1, 1):
                source = source.reshaped(shape[:2])
            elif axes == 4 and len(shape) == 2:
                source = source.reshaped((*shape, 1, 1))
        shaped[name] = source
    return shaped


def _check(place: str, kind: Kind, factors: Mapping[str, Source], module: nn.Module) -> int | None:
    """The rank, if the factors make up a change of the layer's weight: TensorMismatch if not."""
    weight: Any = module.weight
    shapes = {name: source.shape for name, source in factors.items()}
    wanted, rank = tuple(weight.shape), None
    try:
        made, rank = kind.shape(shapes), kind.rank(shapes)
        fits = made == wanted or made == (wanted[0], math.prod(wanted[1:]))
    except (KeyError, IndexError, ValueError):
        fits = False
    if not fits or rank == 0:
        raise TensorMismatch(
            f"{place} has factors {', '.join(f'{name} {shape}' for name, shape in shapes.items())}, which do not make "
            f"up a change of its weight {wanted}: the LoRA was trained for another model, or the file is damaged."
        )
    return rank


def _check_family(file: LoraFile, networks: Mapping[str, nn.Module]) -> None:
    """TensorMismatch for a LoRA whose UNet attends to texts of another width than this one."""
    own = getattr(getattr(networks.get("unet"), "config", None), "cross_attention_dim", None)
    width = next(
        (
            factors["down"].shape[1]
            for layer, factors in file.networks.get("unet", {}).items()
            if "attn2" in layer and layer.endswith(("to_k", "to_v")) and len(factors.get("down", _NOTHING).shape) > 1
        ),
        2048 if "text_encoder_2" in file.networks and "text_encoder_2" not in networks else None,
    )
    if isinstance(own, int) and width is not None and width != own:
        raise TensorMismatch(
            f"{file.where} is a LoRA for {_family(width)}, and this model is {_family(own)}: use one that was trained "
            "for it, or open the model that the LoRA is for."
        )


_NOTHING = Source(tensor=torch.empty(0))


def _family(width: int) -> str:
    return WIDTHS.get(width, f"a model whose UNet reads texts of width {width}")
