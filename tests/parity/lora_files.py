"""LoRA files made on the spot: random factors for layers of a network, in the layouts that there are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = re.compile(r"(attn[12]|self_attn)\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$")
TRANSFORMERS = re.compile(r"\.attentions\.")
EVERYTHING = re.compile(r"")

State = dict[str, Tensor]


def layers(network: nn.Module, which: re.Pattern[str] = ATTENTION) -> Iterator[tuple[str, nn.Module]]:
    """Linear and convolution layers whose names match."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and which.search(name):
            yield name, module


def factors(module: Any, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """down (r, ins, k, k) and up (out, r, 1, 1) whose product is as large as a tenth of the layer's weight."""
    out, ins, *kernel = module.weight.shape
    down = torch.randn(rank, ins, *kernel, generator=generator)
    up = torch.randn(out, rank, *[1] * len(kernel), generator=generator)
    size = float(module.weight.detach().std()) / math.sqrt(rank)
    return down, 0.5 * size * up


def dotted(
    prefix: str, network: nn.Module, *, rank: int = 4, seed: int = 0, which: re.Pattern[str] = ATTENTION
) -> State:
    """In PEFT's layout as diffusers writes it."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, module in layers(network, which):
        down, up = factors(module, rank, generator)
        state[f"{prefix}.{name}.lora_A.weight"] = down
        state[f"{prefix}.{name}.lora_B.weight"] = up
    return state


def kohya(
    prefix: str, network: nn.Module, *, rank: int = 4, alpha: float = 2.0, seed: int = 0,
    which: re.Pattern[str] = ATTENTION, rename: Callable[[str], str] = lambda name: name,
) -> State:  # fmt: skip
    """In the layout of kohya's trainers; `rename` gives a layer's name there, before dots become underscores."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, module in layers(network, which):
        down, up = factors(module, rank, generator)
        key = f"{prefix}_{rename(name).replace('.', '_')}"
        state[f"{key}.lora_down.weight"] = down
        state[f"{key}.lora_up.weight"] = up
        state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


def merge(network: nn.Module, state: State, prefix: str, weight: float = 1.0) -> None:
    """Add a dotted or kohya state to the network's weights, in float64: the plain reference."""
    for name, module in layers(network, EVERYTHING):
        for key, alpha in ((f"{prefix}.{name}", None), (f"{prefix}_{name.replace('.', '_')}", "alpha")):
            down = state.get(f"{key}.lora_A.weight", state.get(f"{key}.lora_down.weight"))
            up = state.get(f"{key}.lora_B.weight", state.get(f"{key}.lora_up.weight"))
            if down is None or up is None:
                continue
            scale = weight * (float(state[f"{key}.alpha"]) / len(down) if alpha else 1.0)
            change = (up.double().flatten(1) @ down.double().flatten(1)).reshape(module.weight.shape)
            with torch.no_grad():
                module.weight.copy_((module.weight.double() + scale * change).to(module.weight.dtype))
