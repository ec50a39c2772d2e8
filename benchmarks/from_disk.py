"""What three savings give steps whose weights come from disk: single products for small maps, huge pages, and reading
threads that compute alone.

    python -m benchmarks.from_disk --work FOLDER [--rounds 2] [--out FILE.json]

Each row is drawn by a process of its own, with `sequential_offload`, twice, of which the second call counts: as it is,
and with one of them left out. Rounds are interleaved. Told are seconds of a step, and the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.script_record import RESULTS, spread, write_record
from tqdm.auto import tqdm

from leandiffusion.bench.run.models import find_model
from leandiffusion.core.libraries import environment_of_others

WORK = (("demo", 384, 2, 8), ("shape:sd15", 128, 1, 3), ("shape:sd15", 256, 1, 3))
"""Model, size, batch and steps."""

VARIANTS = {
    "as it is": {}, "direct convolutions": {"DIRECT": "1"}, "small pages": {"THP_MEM_ALLOC_ENABLE": "0"},
    "readers with helpers": {"HELPERS": "1"},
}  # fmt: skip
"""Variables of the environment."""

PROGRAM = """
import json, os, sys
import torch
import leandiffusion
from leandiffusion.measure.memory import peak_rss
from leandiffusion.modules import convolution
from leandiffusion.offload import prefetch
checkpoint, size, batch, steps = sys.argv[1], *map(int, sys.argv[2:])
if os.environ.get("HELPERS"):
    prefetch.compute_alone = lambda: None
if os.environ.get("DIRECT"):
    convolution.MOST_OUTPUTS = convolution.MOST_OUTPUTS_OF_LARGE = 0
open_ = leandiffusion.StableDiffusionPipeline.from_pretrained
pipe = open_(checkpoint, torch_dtype=torch.float32, offload="sequential")
pipe.set_progress_bar_config(disable=True)
for _ in range(2):
    pipe(["a red circle"] * batch, num_inference_steps=steps, height=size, width=size, output_type="latent")
print(json.dumps({"step": pipe.last_times["denoise"] / steps, "peak": peak_rss()}))
"""


def draw(variant: str, checkpoint: str, *numbers: int) -> dict[str, float]:
    """What a process told."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, checkpoint, *map(str, numbers)],
        env={**environment_of_others(), **VARIANTS[variant]}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{variant} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu-from-disk.json")
    asked = parser.parse_args()
    checkpoints = {model: find_model(model, asked.work)["checkpoint"] for model, *_ in WORK}
    rows: list[dict[str, Any]] = [
        {"model": work[0], "size": work[1], "batch": work[2], "steps": work[3], "variant": variant, "rounds": []}
        for work in WORK for variant in VARIANTS
    ]  # fmt: skip
    with tqdm(total=asked.rounds * len(rows), unit="process") as bar:
        for _ in range(asked.rounds):
            for row in rows:
                told = draw(row["variant"], checkpoints[row["model"]], row["size"], row["batch"], row["steps"])
                row["rounds"].append(told)
                bar.update()
    for row in rows:
        steps, peak = [each["step"] for each in row["rounds"]], statistics.median(e["peak"] for e in row["rounds"])
        print(f"{row['model']}, {row['size']} px, {row['variant']}: {spread(steps)} s a step, {peak / 2**20:.0f} MiB")
    write_record(asked.out, Path(__file__).name, {"rounds": asked.rounds}, rows)
    print(f"record: {asked.out}")


if __name__ == "__main__":
    main()
