"""Floating-point operations of a checkpoint's networks, from their configs alone."""

from __future__ import annotations

from pathlib import Path

import torch

from ...attention import backends
from ...core.errors import LeanError
from ...measure.work import count_flops
from ...modules.transformer import set_attention_backend
from ...plan.empty import empty_networks
from ...plan.stages import unet_inputs


def count_flops_of(checkpoint: Path, size: int, batch: int) -> dict[str, float]:
    """Operations of 'step', a UNet call for `batch` pictures with guidance, and of 'decode', the VAE's for them all.

    Pictures are `size` x `size` pixels. `checkpoint` is a pipeline folder, of which only JSON files are read, or a
    single file, of which only the header is; the networks are built on the meta device and take no memory. A
    multiply-add counts as two; norms, activations and softmax, a percent or less, are not counted. Empty for what is no
    such checkpoint, or holds networks that are not supported.
    """
    try:
        networks = empty_networks(checkpoint, only=("unet", "vae", "text_encoder"))
    except LeanError:
        return {}
    if not {"unet", "vae"} <= networks.keys():
        return {}
    unet, vae = networks["unet"], networks["vae"]
    for network in (unet, vae):
        set_attention_backend(network, backends.get("plain"))  # written out it counts
    side = size // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.empty(batch, vae.config.latent_channels, side, side, device="meta")
    # As every program calls it: the batch twice, but once where guidance is an input of the network.
    rows = batch * (1 if unet.config.time_cond_proj_dim else 2)
    text, inputs = unet_inputs(networks, rows)
    sample = torch.empty(rows, unet.config.in_channels, side, side, device="meta")
    with torch.no_grad():
        step = count_flops(lambda: unet(sample, torch.empty((), device="meta"), text, **inputs))
        return {"step": float(step), "decode": float(count_flops(lambda: vae.decode(latents)))}
