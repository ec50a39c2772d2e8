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


def write_checkpoint(folder: Path, dtype: str) -> None:
    """A whole SD1 pipeline folder with random weights, network by network so that one at a time is in memory."""
    import torch

    from leandiffusion import CLIPTokenizer, StableDiffusionPipeline
    from leandiffusion.core.config import write_json
    from leandiffusion.families.base import families
    from leandiffusion.families.folder import component_class

    family = families.get("sd1")
    index: dict[str, object] = {"_class_name": StableDiffusionPipeline.__name__, "_diffusers_version": "0.30.0"}
    for name, part in family.parts.items():
        with torch.device("meta"):
            network = component_class(part.class_name).from_config(part.config)
        network = network.to(getattr(torch, dtype)).to_empty(device="cpu").requires_grad_(False)
        for tensor in network.parameters():
            tensor.normal_(std=0.02)
        network.save_pretrained(folder / name)
        index[name] = ["transformers" if name == "text_encoder" else "diffusers", part.class_name]
    CLIPTokenizer.standard().save_pretrained(folder / "tokenizer")
    class_name, settings = family.scheduler
    component_class(class_name).from_config(settings).save_pretrained(folder / "scheduler")
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", class_name]}
    write_json(folder / "model_index.json", index)


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
        folder = asked.folder or Path(temporary)
        if not (folder / "model_index.json").exists():
            write_checkpoint(folder, asked.dtype)
        arguments = [sys.executable, "-c", OPEN, str(folder), asked.at or asked.dtype]
        found = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    ratio = found["peak"] / found["weights"]
    print(
        f"opened in {found['seconds']:.2f} s: weights {found['weights'] / 2**20:.0f} MiB, "
        f"peak {found['peak'] / 2**20:.0f} MiB, {ratio:.3f}x"
    )


if __name__ == "__main__":
    main()
