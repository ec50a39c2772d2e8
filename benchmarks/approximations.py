"""What the approximate techniques gain and cost on the packaged model: time, decibels, and pictures that are right.

    python -m benchmarks.approximations [--pictures 128] [--steps 50] [--batch 8] [--threads 1] [--only WORD]
        [--out FILE.json]

Prompts that the model was not trained with are drawn with every combination of settings, in batches; combinations take
turns at each batch, and ratios are taken within it. Seconds are those of the processor, so that other programs on the
machine disturb little. PSNR against exact pictures is of the error over all of them; what is right is judged by
`tools.demo_world`. `--only` draws combinations whose titles have that word, and the exact one. A finished batch is on
disk before the next begins.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tools.demo_world.scenes import Description
from tools.demo_world.score import held_out_descriptions
from tools.demo_world.verify import verify
from tools.script_record import RESULTS, spread, write_record
from tqdm.auto import tqdm

from leandiffusion import StableDiffusionPipeline, demo
from leandiffusion.measure.quality import psnr

Settings = dict[str, dict[str, Any]]
"""Techniques by name, each with its settings."""

EXACT = "nothing"
STOPS, INTERVALS, BOTH = (0.7, 0.5, 0.3), (2, 3, 4, 5), (3, 4)


def combinations() -> dict[str, Settings]:
    """Title -> what is switched on, the exact one first."""
    guided = {f"guidance_interval, stop {stop}": {"guidance_interval": {"stop": stop}} for stop in STOPS}
    cached = {f"deep_cache, interval {n}": {"deep_cache": {"interval": n}} for n in INTERVALS}
    both = {
        f"interval {n} and stop {STOPS[0]}": {"deep_cache": {"interval": n}, "guidance_interval": {"stop": STOPS[0]}}
        for n in BOTH
    }
    rounded: dict[str, Settings] = {
        "int8": {"int8": {}},
        f"int8 and interval {INTERVALS[1]}": {"int8": {}, "deep_cache": {"interval": INTERVALS[1]}},
    }
    return {EXACT: {}, **guided, **cached, **both, **rounded}


@dataclass
class Found:
    """Of one combination: seconds of each batch, how many pictures are right, and the pictures."""

    seconds: list[float] = field(default_factory=list)
    right: int = 0
    pictures: list[np.ndarray] = field(default_factory=list)

    def add(self, pictures: np.ndarray, wanted: Sequence[Description], seconds: float) -> None:
        """Pictures (B, H, W, 3) in [0, 1]."""
        whole = (255 * pictures).round().astype(np.uint8)
        self.right += sum(verify(one, each).fully_right for one, each in zip(whole, wanted, strict=True))
        self.seconds.append(seconds)
        self.pictures.append(pictures)

    def against(self, exact: Found) -> dict[str, Any]:
        """The figures, as JSON values. `psnr` in dB, None for equal pictures."""
        ratios = [theirs / own for theirs, own in zip(exact.seconds, self.seconds, strict=True)]
        distance = psnr(np.concatenate(self.pictures), np.concatenate(exact.pictures))
        return {"seconds": self.seconds, "times as fast": ratios, "psnr": distance, "right": self.right}


def draw(pipe: Any, settings: Settings, wanted: Sequence[Description], seed: int, steps: int) -> tuple[Any, float]:
    """The pictures (B, H, W, 3) in [0, 1], and the processor's seconds for the call."""
    for name, values in settings.items():
        pipe.enable(name, **values)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(wanted))]
    prompts, guidance = [each.prompt for each in wanted], demo.DEFAULTS["guidance_scale"]
    start = time.process_time()
    output = pipe(
        prompts, generator=generators, num_inference_steps=steps, guidance_scale=guidance, output_type="np"
    )  # fmt: skip
    seconds = time.process_time() - start
    for name in settings:
        pipe.disable(name)
    return output.images, seconds


def prompts(count: int) -> list[Description]:
    """Held-out prompts, of one thing and of two in turn."""
    every = held_out_descriptions(count, seed=0)
    singles, pairs = every[: -(count // 2) or None], every[len(every) - count // 2 :]
    return [each for pair in itertools.zip_longest(singles, pairs) for each in pair if each is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu-approximations.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    pipe = StableDiffusionPipeline.from_pretrained("demo", dtype=torch.float32, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    chosen = {title: each for title, each in combinations().items() if title == EXACT or asked.only in title}
    wanted, found = prompts(asked.pictures), {title: Found() for title in chosen}
    draw(pipe, {}, wanted[: asked.batch], 0, 2)  # reads the weights
    for seed in tqdm(range(0, len(wanted), asked.batch), desc="batches"):
        some = wanted[seed : seed + asked.batch]
        for title, settings in chosen.items():
            pictures, seconds = draw(pipe, settings, some, seed, asked.steps)
            found[title].add(pictures, some, seconds)
        figures = {title: each.against(found[EXACT]) for title, each in found.items()}
        settings = {"steps": asked.steps, "batch": asked.batch, "threads": asked.threads, "pictures": seed + len(some)}
        write_record(asked.out, Path(__file__).name, settings, figures)
    print("| switched on | times as fast | PSNR, dB | fully right |\n|---|---|---|---|")
    for title, told in figures.items():
        distance = "" if told["psnr"] is None else f"{told['psnr']:.1f}"
        print(f"| {title} | {spread(told['times as fast'])} | {distance} | {told['right']} |")


if __name__ == "__main__":
    main()
