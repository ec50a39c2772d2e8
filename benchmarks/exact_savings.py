"""What each exact saving gives a UNet step and a decode: full-size Stable Diffusion 1.5, random float32 weights.

    python -m benchmarks.exact_savings [--size 512] [--rounds 3] [--threads 2] [--out FILE.json]

Every variant leaves out one saving, and the last one leaves out all. Variants take turns in rounds; times are medians
with the least and the greatest, ratios are taken within a round. Operations are those of matrix products and
convolutions. Quiet: chrt -r 10 python -m benchmarks.exact_savings
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tools.script_record import spread, write_record
from torch import Tensor, nn
from tqdm.auto import tqdm

from leandiffusion.families.base import families
from leandiffusion.families.folder import component_class
from leandiffusion.measure.work import count_flops
from leandiffusion.modules import convolution, transformer
from leandiffusion.modules.convolution import Conv2d
from leandiffusion.modules.text_memory import TextMemory, remembering
from leandiffusion.weights.packed import unpack

SAVINGS = ("Winograd", "packed weights", "shared samples", "text memory", "feed-forward in parts")
DECODE = ("Winograd", "packed weights")

Left = tuple[str, ...]
"""Savings that are left out."""
Times = dict[Left, list[float]]
Table = dict[str, dict[str, Any]]
"""What is left out, in words -> its figures."""


def network(role: str) -> Any:
    """The family's network of that role, with random weights."""
    spec = families.get("sd1").networks[role]
    torch.manual_seed(0)
    return component_class(spec.class_name).from_config(spec.config).eval().requires_grad_(False)


@contextmanager
def without(left_out: Left, layers: list[Conv2d]) -> Iterator[None]:
    """Everything on but what is named."""
    packs = "packed weights" not in left_out
    for layer in layers:
        layer.packs = packs
        if not packs:
            unpack(layer)
    whole = 1 << 60 if "feed-forward in parts" in left_out else transformer.INNER_BYTES
    pays = (lambda: False) if "Winograd" in left_out else convolution.pays
    with patch.object(convolution, "pays", pays), patch.object(transformer, "INNER_BYTES", whole):
        yield


def measure(title: str, savings: Left, net: nn.Module, work: Callable[[Left], Tensor], rounds: int) -> Table:
    """Print the table of one network, and return it. `work(left_out)` computes with it."""
    layers = [module for module in net.modules() if isinstance(module, Conv2d)]
    variants: list[Left] = [(), *((saving,) for saving in savings), savings]
    seconds: Times = {variant: [] for variant in variants}
    flops: dict[Left, int] = {}
    errors: dict[Left, float] = {}
    reference = None
    for round_ in tqdm(range(rounds), desc=title):
        for variant in variants if round_ % 2 == 0 else variants[::-1]:
            with without(variant, layers):
                result = work(variant)  # packs, and is not timed
                begin = time.perf_counter()
                result = work(variant)
                seconds[variant].append(time.perf_counter() - begin)
            reference = result if reference is None else reference
            errors[variant] = float((result - reference).abs().max() / reference.abs().max())
    for variant in variants:  # packed convolutions are not counted by torch: plain ones have as many operations
        with without((*variant, "packed weights"), layers):
            flops[variant] = count_flops(lambda variant=variant: work(variant))
    return tabulated(title, seconds, flops, errors)


def tabulated(title: str, seconds: Times, flops: Mapping[Left, int], errors: Mapping[Left, float]) -> Table:
    """Print the table and return it."""
    table: Table = {}
    print(f"\n| {title}: left out | operations | seconds | times as long | differs by |\n|---|---|---|---|---|")
    for variant, taken in seconds.items():
        name = " and ".join(variant) if len(variant) < 2 else "all of them"
        ratios = [mine / all_on for mine, all_on in zip(taken, seconds[()], strict=True)]
        count, error = flops[variant], errors[variant]
        print(f"| {name} | {count / 1e12:.3f} T | {spread(taken)} | {spread(ratios)} | {error:.0e} |")
        table[name] = {"operations": count, "seconds": taken, "differs by": error}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write a record here: the figures, and where they were measured")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    side = asked.size // 8
    with torch.no_grad():
        x = torch.randn(1, 4, side, side)
        tables = {"step": steps(asked.size, x, asked.rounds)}
        vae = network("vae")
        vae.encoder = None
        title = f"decoding {asked.size} px"
        tables["decode"] = measure(title, DECODE, vae, lambda _: vae.decode(x).sample, asked.rounds)
    if asked.out is not None:
        settings = {"size": asked.size, "rounds": asked.rounds, "threads": asked.threads}
        write_record(asked.out, Path(__file__).name, settings, tables)


def steps(size: int, x: Tensor, rounds: int) -> Table:
    """The table of the UNet, which is gone afterwards."""
    unet, text = network("unet"), torch.randn(2, 77, 768)
    memory = TextMemory(text)

    def step(left_out: Left) -> Tensor:
        sample = torch.cat([x, x]) if "shared samples" in left_out else x
        with remembering(None if "text memory" in left_out else memory):
            return unet(sample, 500, text).sample

    return measure(f"a step at {size} px", SAVINGS, unet, step, rounds)


if __name__ == "__main__":
    main()
