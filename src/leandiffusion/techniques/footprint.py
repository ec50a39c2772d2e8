"""What drawing takes, from shapes alone: bytes and relative time of each stage. No network is run.

The figures are for choosing between settings: which needs less, and whether it may fit. Working memory was held against
measured peaks of the full-size SD1.5 networks (tests/unit/techniques/test_footprint.py) and lies within a factor of 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..modules.transformer import attention_layers
from ..offload.units import weight_bytes
from .subject import Subject

GEGLU_COPIES = 24
"""Of a transformer's tokens at its widest moment: eight times the channels, their GELU, their product, and around them
the tokens themselves, normed and not, and what the product is reordered into."""

CONV_COPIES = 3
"""Of the widest map at a convolution's worst moment: what it reads, the library's reordered copy, what it writes."""


@dataclass(frozen=True)
class CallSize:
    """Pixels and pictures of a call; with `guidance` each step makes a conditional and an unconditional prediction."""

    height: int
    width: int
    batch: int = 1
    guidance: bool = True


@dataclass(frozen=True)
class Stage:
    """One stage of drawing, in bytes.

    `own` weights of the networks it runs, `others` those of the other networks that are in memory meanwhile;
    `activations` without attention's scores, `attention` those. `leaf` is the largest layer of its networks. `time` is
    relative to the plain pipeline.
    """

    own: int
    others: int
    activations: int
    attention: int
    leaf: int
    time: float = 1.0

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return self.own + self.others + self.activations + self.attention


@dataclass(frozen=True)
class Footprint:
    """Every stage by name: encode, denoise, decode."""

    call: CallSize
    stages: Mapping[str, Stage]

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of the worst stage."""
        return max(stage.peak for stage in self.stages.values())

    def change(self, change: Callable[[Stage], Stage], *names: str) -> Footprint:
        """This footprint with the named stages changed, all unless any is named."""
        chosen = names or tuple(self.stages)
        stages = {name: change(stage) if name in chosen else stage for name, stage in self.stages.items()}
        return replace(self, stages=stages)


def plain_footprint(subject: Subject, call: CallSize) -> Footprint:
    """What `call` takes on this pipeline with its present dtypes and attention kernels and nothing else switched on."""
    networks: dict[str, nn.Module] = subject.networks
    vae = {name: network for name, network in networks.items() if name == "vae"}
    unet = {name: network for name, network in networks.items() if name == "unet"}
    texts = {name: network for name, network in networks.items() if name.startswith("text_encoder")}
    total = sum(weight_bytes(network) for network in networks.values())

    def stage(own: Mapping[str, nn.Module], activations: int, attention: int) -> Stage:
        weights = sum(weight_bytes(network) for network in own.values())
        leaf = max((_largest_leaf(network) for network in own.values()), default=0)
        return Stage(weights, total - weights, activations, attention, leaf)

    network = getattr(subject.denoiser, "unet", subject.denoiser)  # what a traced one stands for
    size = subject.pipe.vae_scale_factor
    latent = (call.height // size, call.width // size)
    rows = call.batch * (1 + call.guidance)
    return Footprint(
        call,
        {
            "encode": stage(texts, 0, 0),
            "denoise": stage(unet, *_unet_memory(network, rows, *latent)),
            "decode": stage(vae, *_vae_memory(subject.vae, call)),
        },
    )


def _largest_leaf(network: nn.Module) -> int:
    """Bytes of the largest layer that travels when layers do: embeddings are looked up where they lie."""
    leaves = (m for m in network.modules() if next(m.children(), None) is None and not isinstance(m, nn.Embedding))
    return max((weight_bytes(leaf) for leaf in leaves), default=0)


def _unet_memory(unet: Any, rows: int, h: int, w: int) -> tuple[int, int]:
    """Activations and attention workspace of one forward with `rows` rows of latents (h, w)."""
    config, itemsize = unet.config, unet.dtype.itemsize
    channels = list(config.block_out_channels)
    crosses = ["CrossAttn" in kind for kind in config.down_block_types]
    areas = [math.ceil(h / 2**i) * math.ceil(w / 2**i) for i in range(len(channels))]
    layers = config.layers_per_block
    depth = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    skips = channels[0] * areas[0] + sum(
        c * (a * n + (areas[i + 1] if i + 1 < len(areas) else 0))
        for i, (c, a, n) in enumerate(zip(channels, areas, depth, strict=True))
    )
    joined = CONV_COPIES * (channels[0] + channels[min(1, len(channels) - 1)]) * areas[0]  # a skip beside its level
    tokens = [GEGLU_COPIES * c * a for c, a, cross in zip(channels, areas, crosses, strict=True) if cross]
    attention = max(
        (_workspace(unet.down_blocks[i], rows, areas[i], itemsize) for i, cross in enumerate(crosses) if cross),
        default=0,
    )
    return rows * itemsize * (skips + max(joined, *tokens, 0)), attention


def _workspace(block: nn.Module, rows: int, tokens: int, itemsize: int) -> int:
    layer = next((layer for _, layer in attention_layers(block)), None)
    return 0 if layer is None else layer.backend.workspace_bytes(rows, layer.heads, tokens, tokens, itemsize)


def _vae_memory(vae: Any, call: CallSize) -> tuple[int, int]:
    """Activations and attention workspace of decoding `call`: the map that enters the last level is the largest."""
    channels, itemsize = list(vae.config.block_out_channels), vae.dtype.itemsize
    widest = max(channels[0], channels[1] if len(channels) > 1 else 0)
    size = 2 ** (len(channels) - 1)
    tokens = (call.height // size) * (call.width // size)
    attention = _workspace(vae.decoder.mid_block, call.batch, tokens, itemsize)
    return CONV_COPIES * call.batch * widest * call.height * call.width * itemsize, attention
