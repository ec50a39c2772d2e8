"""What opening a full-size Stable Diffusion 1.5 costs: seconds, and the peak of memory against the weights.

    python benchmarks/loading.py [--dtype float16|bfloat16|float32] [--at DTYPE] [--folder FOLDER]

Random weights of the right shapes are written to FOLDER (a temporary one, removed again, unless given) and opened by a
fresh process per row. Memory is the process's peak (VmHWM) above what it had before opening.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from leandiffusion.bench.run.models import write_random_checkpoint
from leandiffusion.families.base import families

FRESH_IMPORTS = ["import leandiffusion", "from leandiffusion import StableDiffusionPipeline"]
OPEN = """
import json, sys, time, torch
from leandiffusion import StableDiffusionPipeline
from leandiffusion.measure.memory import peak_rss
torch.zeros(1).half()
before, start = peak_rss(), time.perf_counter()
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
seconds = time.perf_counter() - start
networks = (pipe.unet, pipe.vae, pipe.text_encoder)
weights = sum(t.nbytes for network in networks for t in network.state_dict().values())
print(json.dumps({"seconds": seconds, "weights": weights, "peak": peak_rss() - before}))
"""


def time_statement(statement: str) -> float:
    """Seconds that an interpreter takes to run `statement`, less what it takes to start: the best of three."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dtypes = ("float16", "bfloat16", "float32")
    parser.add_argument("--dtype", choices=dtypes, default="float16", help="of the weights on disk")
    parser.add_argument("--at", choices=dtypes, help="what they are opened at; the same unless given")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here, and use it again if it is there")
    asked = parser.parse_args()

    for statement in FRESH_IMPORTS:
        print(f"{statement}: {time_statement(statement):.2f} s", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary) / "sd15"
        if not (folder / "model_index.json").exists():
            write_random_checkpoint(families.get("sd1"), folder, getattr(torch, asked.dtype))
        arguments = [sys.executable, "-c", OPEN, str(folder), asked.at or asked.dtype]
        found = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    ratio = found["peak"] / found["weights"]
    print(
        f"opened in {found['seconds']:.2f} s: weights {found['weights'] / 2**20:.0f} MiB, "
        f"peak {found['peak'] / 2**20:.0f} MiB, {ratio:.3f}x"
    )


if __name__ == "__main__":
    main()
