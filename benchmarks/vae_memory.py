"""Peak memory of the VAE's decode, whole and in strips, one picture and many: full size, random float32 weights.

    python benchmarks/vae_memory.py [--sizes 512 1024] [--batch 32] [--batch-size 256]

Each row runs in a process of its own. Memory is the process's peak (VmHWM) above what it had just before decoding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any


def decode(size: int, count: int, tiling: bool, slicing: bool) -> dict[str, Any]:
    """Decode `count` latents for pictures of `size` pixels; bytes and seconds."""
    import time

    import torch

    from leandiffusion.families.base import families
    from leandiffusion.families.folder import component_class
    from leandiffusion.measure.memory import peak_rss, release, reset_peak, rss

    part = families.get("sd1").networks["vae"]
    torch.manual_seed(0)
    vae = component_class(part.class_name).from_config(part.config).eval()
    vae.encoder = None
    if tiling:
        vae.enable_tiling()
    if slicing:
        vae.enable_slicing()
    latents = torch.randn(count, 4, size // 8, size // 8)
    with torch.no_grad():
        vae.decode(latents[:1, :, :8, :8])  # what the first convolution sets up is not the decode's
        release()
        reset_peak()
        before, start = rss() or 0, time.perf_counter()
        picture = vae.decode(latents).sample
        seconds = time.perf_counter() - start
    return {"peak": (peak_rss() or 0) - before, "output": picture.nbytes, "seconds": seconds}


def measure(size: int, count: int, *, tiling: bool = False, slicing: bool = False) -> dict[str, Any]:
    """`decode` in a fresh process, with a line about it."""
    arguments = json.dumps([size, count, tiling, slicing])
    command = [sys.executable, __file__, "--decode", arguments]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    how = " and ".join(name for name, on in (("tiled", tiling), ("sliced", slicing)) if on) or "whole"
    print(
        f"{count} x {size} px, {how}: peak {found['peak'] / 2**20:.0f} MiB, of which the result "
        f"{found['output'] / 2**20:.0f}, {found['seconds']:.1f} s",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 1024])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256, help="pixels of the batch's pictures")
    parser.add_argument("--decode", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.decode:
        print(json.dumps(decode(*json.loads(asked.decode))))
        return
    for size in asked.sizes:
        whole, tiled = measure(size, 1), measure(size, 1, tiling=True)
        memory, time = tiled["peak"] / whole["peak"], tiled["seconds"] / whole["seconds"]
        print(f"  tiled / whole: {memory:.2f} of the memory, {time:.2f} of the time")
    one = measure(asked.batch_size, 1)
    sliced = measure(asked.batch_size, asked.batch, slicing=True)
    expected = one["peak"] - one["output"] + sliced["output"]
    print(f"  sliced batch / (one picture + result): {sliced['peak'] / expected:.2f}")


if __name__ == "__main__":
    main()
