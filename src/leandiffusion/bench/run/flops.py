"""Floating-point operations of a checkpoint's networks, from their configs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...attention import backends
from ...core.errors import LeanError
from ...families.folder import component_class, read_index
from ...families.single_file import family_of_file
from ...measure.work import count_flops
from ...modules.transformer import set_attention_backend
from ...weights.build import build_empty

TOKENS = 77  # that CLIP reads, where the checkpoint does not say


def count_flops_of(checkpoint: Path, size: int, batch: int) -> dict[str, float]:
    """Operations of 'step', a UNet call for `batch` pictures with guidance, and of 'decode', the VAE's for them all.

    Pictures are `size` x `size` pixels. `checkpoint` is a pipeline folder, of which only JSON files are read, or a
    single file, of which only the header is; the networks are built on the meta device and take no memory. A
    multiply-add counts as two; norms, activations and softmax, a percent or less, are not counted. Empty for what is no
    such checkpoint, or holds networks that are not supported.
    """
    try:
        unet, vae = (_network(checkpoint, name) for name in ("unet", "vae"))
        tokens = _tokens(checkpoint)
    except LeanError:
        return {}
    if unet is None or vae is None:
        return {}
    side = size // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.empty(batch, vae.config.latent_channels, side, side, device="meta")
    step = _unet_call(unet, batch, side, tokens)
    with torch.no_grad():
        return {"step": float(count_flops(step)), "decode": float(count_flops(lambda: vae.decode(latents)))}


def _described(checkpoint: Path, component: str) -> tuple[type[Any], Mapping[str, Any]] | None:
    """Class and config of a component; None where the checkpoint has no such."""
    if checkpoint.is_file():
        part = family_of_file(checkpoint).networks.get(component)
        return (component_class(part.class_name), part.config) if part is not None else None
    name = read_index(checkpoint).components.get(component)
    if name is None:
        return None
    cls = component_class(name)
    return cls, cls.load_config(checkpoint, subfolder=component)


def _network(checkpoint: Path, component: str) -> Any:
    """The component without weights, its attention written out so that it counts; None where there is no such."""
    described = _described(checkpoint, component)
    if described is None:
        return None
    cls, config = described
    network: nn.Module = build_empty(lambda: cls.from_config(config))
    set_attention_backend(network, backends.get("plain"))
    return network


def _tokens(checkpoint: Path) -> int:
    described = _described(checkpoint, "text_encoder")
    return TOKENS if described is None else int(described[1].get("max_position_embeddings", TOKENS))


def _unet_call(unet: Any, batch: int, side: int, tokens: int) -> Callable[[], object]:
    """One call as the pipelines make it: the batch twice, but once where guidance is an input of the network."""
    config = unet.config
    rows = batch * (1 if config.time_cond_proj_dim else 2)
    context = config.cross_attention_dim
    context = context if isinstance(context, int) else context[0]

    def zeros(*shape: int) -> torch.Tensor:
        return torch.empty(rows, *shape, device="meta")

    inputs: dict[str, Any] = {}
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = zeros(config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": zeros(pooled), "time_ids": zeros(6)}
    sample, words = zeros(config.in_channels, side, side), zeros(tokens, context)
    return lambda: unet(sample, torch.empty((), device="meta"), words, **inputs)
