"""What offloading costs and saves: full-size Stable Diffusion 1.5, random weights, each row in its own process.

    python benchmarks/offload.py [--size 512] [--steps 2] [--repeat 3] [--folder FOLDER] [--out RECORDS.jsonl]

The checkpoint holds bfloat16. It is opened at bfloat16 where this CPU multiplies that in hardware and at float32 where
it does not, unless --dtype says otherwise. Rows take turns, so that a machine's drift hits all alike. Memory is the
process's peak (VmHWM) from its start, Python and torch included; seconds are of the last step, the first one includes
warming up. The ratio compares steps within one round: its median, and its range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from loading import write_checkpoint

ROWS: dict[str, dict[str, Any]] = {
    "resident": {},
    "model offload": {"offload": "model"},
    "sequential offload": {"offload": "sequential"},
    "sequential + attention slicing": {"offload": "sequential", "techniques": ["attention_slicing"]},
    "sequential + attention slicing + VAE tiling": {
        "offload": "sequential",
        "techniques": ["attention_slicing", "vae_tiling"],
    },
    "resident + VAE tiling": {"techniques": ["vae_tiling"]},
}


def draw(order: dict[str, Any]) -> dict[str, Any]:
    """Draw one picture in this process; returns figures."""
    import time

    import torch

    from leandiffusion import StableDiffusionPipeline
    from leandiffusion.measure.memory import peak_rss, rss

    start = time.perf_counter()
    pipe = StableDiffusionPipeline.from_pretrained(
        order["folder"], dtype=getattr(torch, order["dtype"]), offload=order.get("offload")
    )
    for name in order.get("techniques", ()):
        pipe.enable(name)
    opened, ends = time.perf_counter() - start, [time.perf_counter()]
    peaks: dict[str, int] = {"open": peak_rss() or 0}
    pipe.set_progress_bar_config(disable=True)

    def note(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.append(time.perf_counter())
        peaks["denoise"] = peak_rss() or 0
        return {}

    pipe(
        "a photo of an astronaut riding a horse on mars", num_inference_steps=order["steps"], output_type="np",
        width=order["size"], height=order["size"], generator=torch.Generator().manual_seed(0),
        callback_on_step_end=note,
    )  # fmt: skip
    return {
        "seconds open": opened,
        "seconds per step": ends[-1] - ends[-2],
        "seconds": pipe.last_times,
        "peak": peak_rss(),
        "peak after": peaks,
        "rss at the end": rss(),
        "threads": torch.get_num_threads(),
    }


def report(records: list[dict[str, Any]]) -> str:
    """A Markdown table: peak, seconds per step, ratio of steps and of peaks to the resident row of the same round."""
    lines = ["| settings | peak MiB | s/step | step vs resident | decode s |", "|---|---|---|---|---|"]
    base = {r["round"]: r for r in records if r["row"] == "resident"}
    for row in dict.fromkeys(r["row"] for r in records):
        mine = [r for r in records if r["row"] == row]
        ratios = [r["seconds per step"] / base[r["round"]]["seconds per step"] for r in mine if r["round"] in base]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–"
        peak = max(r["peak"] for r in mine) / 2**20
        step = statistics.median(r["seconds per step"] for r in mine)
        decode = statistics.median(r["seconds"]["decode"] for r in mine)
        lines.append(f"| {row} | {peak:.0f} | {step:.2f} | {ratio} | {decode:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here, and use it again if it is there")
    parser.add_argument("--out", type=Path, help="append a JSON line per run")
    parser.add_argument("--draw", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.draw:
        print(json.dumps(draw(json.loads(asked.draw))))
        return
    from leandiffusion.measure.environment import describe_environment
    from leandiffusion.techniques.tf32 import fast_bfloat16

    dtype = asked.dtype or ("bfloat16" if fast_bfloat16() else "float32")
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        if not (folder / "model_index.json").exists():
            write_checkpoint(folder, "bfloat16")
        for number in range(asked.repeat):
            for row in asked.rows:
                order = {**ROWS[row], "folder": str(folder), "size": asked.size, "steps": asked.steps, "dtype": dtype}
                command = [sys.executable, __file__, "--draw", json.dumps(order)]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                setting = {"row": row, "round": number, "size": asked.size, "steps": asked.steps, "dtype": dtype}
                records.append(setting | found)
                print(f"{row}: {found['peak'] / 2**20:.0f} MiB, {found['seconds per step']:.2f} s a step", flush=True)
                if asked.out:
                    with asked.out.open("a") as out:
                        out.write(json.dumps(records[-1] | {"environment": describe_environment()}) + "\n")
    print(report(records))


if __name__ == "__main__":
    main()
