"""Score a pipeline folder on prompts that training never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from leandiffusion import StableDiffusionPipeline
from leandiffusion.demo import DEFAULTS
from tools.demo_world.score import Report, held_out_descriptions, score

_BATCH = 25


@dataclass(frozen=True)
class Scoring:
    """How the pictures were drawn."""

    count: int = 300
    steps: int = DEFAULTS["steps"]
    guidance_scale: float = DEFAULTS["guidance_scale"]
    seed: int = 0


def draw_and_score(folder: Path, settings: Scoring, sheet: Path | None = None) -> Report:
    """Draw the held-out prompts, each with its own seed, and judge them; `sheet` gets a contact sheet of the first."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    descriptions = held_out_descriptions(settings.count, settings.seed)
    pictures: list[np.ndarray] = []
    for start in tqdm(range(0, len(descriptions), _BATCH), desc="draw", mininterval=5):
        chunk = descriptions[start : start + _BATCH]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(chunk))]
        images = pipe(
            [description.prompt for description in chunk],
            generator=generators,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
        ).images
        pictures += [np.asarray(image) for image in images]
    if sheet is not None:
        _save_sheet(pictures, sheet)
    return score(pictures, descriptions)


def describe(settings: Scoring, table: str) -> str:
    """A page with the score and how to repeat it."""
    return f"""# What the packaged model draws right

{settings.count} prompts, half of one shape and half of two, in combinations that training never saw. Each was drawn
once ({settings.steps} steps, guidance {settings.guidance_scale:g}, float32, seeds from {settings.seed}) and read back
from its pixels by `tools.demo_world.verify`. A picture is fully right when background, number, shapes,
colours, sizes and relation all are. To repeat it (this is torch {torch.__version__}):

```sh
python -m tools.train_demo score demo --report docs/demo-model.md
```

{table}
"""


def _save_sheet(pictures: list[np.ndarray], path: Path, columns: int = 12, rows: int = 8) -> None:
    """The first half of the sheet from the single things, the second from the pairs."""
    half = columns * rows // 2
    middle = len(pictures) // 2
    chosen = pictures[:middle][:half] + pictures[middle:][:half]
    chosen += [np.zeros_like(pictures[0])] * (columns * rows - len(chosen))
    lines = [np.concatenate(chosen[i : i + columns], axis=1) for i in range(0, len(chosen), columns)]
    Image.fromarray(np.concatenate(lines)).save(path)
