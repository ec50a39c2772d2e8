"""From the start of a process to a finished PNG: `leandiffusion demo` beside diffusers with the same model folder.

    python -m benchmarks.demo_start [--rounds 7] [--threads N] [--out FILE.json]

Both draw the demo picture with its settings, in processes of their own that take turns; a first round, which brings
files into memory, does not count. Seconds are those that pass, and those of the processor, which other programs on the
machine disturb less. Ratios, theirs over ours, are taken within a round. The pictures are compared.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tools.script_record import RESULTS, spread, write_record
from tqdm.auto import tqdm

from leandiffusion import demo
from leandiffusion.core.libraries import environment_of_others
from leandiffusion.measure.quality import psnr

OURS, THEIRS = "leandiffusion demo", "diffusers"

# As its documentation has it; the weights are stored in half precision, which `leandiffusion demo` computes in float32.
DIFFUSERS = """
import sys
import torch
from diffusers import StableDiffusionPipeline
folder, prompt, seed, steps, guidance, out = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
generator = torch.Generator("cpu").manual_seed(int(seed))
output = pipe(prompt, num_inference_steps=int(steps), guidance_scale=float(guidance), generator=generator)
output.images[0].save(out)
"""


def command(name: str, out: Path) -> list[str]:
    """What draws the demo picture into the file `out`."""
    if name == OURS:
        return [sys.executable, "-m", "leandiffusion", "demo", "--no-show", "--out", str(out)]
    asked = (demo.model_folder(), *(demo.DEFAULTS[key] for key in ("prompt", "seed", "steps", "guidance_scale")), out)
    return [sys.executable, "-c", DIFFUSERS, *map(str, asked)]


def environment(threads: int | None, folder: Path) -> dict[str, str]:
    """Variables of both: modules are compiled once, as those of installed packages are."""
    own = {name: value for name, value in environment_of_others().items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**own, "PYTHONPYCACHEPREFIX": str(folder), **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}


def draw(name: str, out: Path, env: dict[str, str]) -> tuple[float, float]:
    """Seconds that passed, and seconds of the processor, until the process had ended with its picture on disk."""
    out.unlink(missing_ok=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command(name, out), capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    passed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int, folder: Path, env: dict[str, str]) -> dict[str, dict[str, list[float]]]:
    """name -> seconds of each round: 'wall' and 'processor'."""
    seconds = {name: {"wall": [], "processor": []} for name in (OURS, THEIRS)}
    for round_ in tqdm(range(rounds + 1), desc="rounds"):
        for name in (OURS, THEIRS) if round_ % 2 else (THEIRS, OURS):
            for kind, taken in zip(("wall", "processor"), draw(name, folder / f"{name}.png", env), strict=True):
                seconds[name][kind] += [taken] if round_ else []
    return seconds


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch, in both; as many as torch takes unless given")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu-demo-start.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(asked.rounds, Path(folder), environment(asked.threads, Path(folder) / "compiled"))
        alike = psnr(*(picture(Path(folder) / f"{name}.png") for name in (THEIRS, OURS)))
    results = {"seconds": seconds, "psnr": alike}
    for kind in ("wall", "processor"):
        ours, theirs = seconds[OURS][kind], seconds[THEIRS][kind]
        ratios = results[f"ratio_{kind}"] = [one / other for one, other in zip(theirs, ours, strict=True)]
        print(f"{kind}: {OURS} {spread(ours)} s, {THEIRS} {spread(theirs)} s, {spread(ratios)} times as long")
        print(f"  at the medians {statistics.median(theirs) / statistics.median(ours):.2f}")
    print("the pictures are equal" if alike is None else f"the pictures are alike to {alike:.1f} dB")
    write_record(
        asked.out, Path(__file__).name, {"rounds": asked.rounds, "threads": asked.threads, **demo.DEFAULTS}, results
    )
    print(f"record: {asked.out}")


if __name__ == "__main__":
    main()
