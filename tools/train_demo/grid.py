"""The README's picture: prompts and what the model draws for them, first try, seed 1."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from leandiffusion import StableDiffusionPipeline
from leandiffusion.demo import DEFAULTS

PROMPTS = (
    "a large red star on a blue background",
    "a small yellow circle on a purple background",
    "a green ring on a white background",
    "a large orange cross on a black background",
    "a white triangle on a red background",
    "a blue square on an orange background",
    "a large purple ring on a yellow background",
    "a small white star on a green background",
    "a black circle on an orange background",
    "a large green triangle on a white background",
)
_SIDE, _COLUMNS, _LINES = 192, 5, 3


def draw_grid(folder: Path, path: Path) -> None:
    """Draw every prompt once with the model's own settings and save the grid, each picture over its prompt."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    images = [
        pipe(
            prompt,
            num_inference_steps=DEFAULTS["steps"],
            guidance_scale=DEFAULTS["guidance_scale"],
            generator=torch.Generator().manual_seed(1),
        ).images[0]
        for prompt in PROMPTS
    ]
    font = ImageFont.load_default(13)
    height = _SIDE + 18 * _LINES
    rows = -(-len(images) // _COLUMNS)
    grid = Image.new("RGB", (_COLUMNS * (_SIDE + 8) + 8, rows * height + 8), "white")
    pen = ImageDraw.Draw(grid)
    for i, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        left, top = 8 + (i % _COLUMNS) * (_SIDE + 8), 8 + (i // _COLUMNS) * height
        grid.paste(image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), (left, top))
        for line, words in enumerate(_wrap(prompt, pen, font)):
            pen.text((left, top + _SIDE + 3 + 16 * line), words, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path, optimize=True)


def _wrap(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if pen.textlength(longer, font=font) <= _SIDE else [*lines, word]
    return lines
