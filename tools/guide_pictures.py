"""Draws the pictures of the guide's pages with the packaged model: prompts, image to image, inpainting, ControlNets.

`python -m tools.guide_pictures`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from leandiffusion import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
)
from leandiffusion.demo import controlnets

STEPS, GUIDANCE, GAP = 30, 2.5, 8
ANEW, THERE = "a large yellow circle on a blue background", "a large yellow star on a green background"

ALONG = (
    "a red circle and a blue square on a white background",
    "a yellow circle left of a purple square on a black background",
    "a green circle below an orange square on a blue background",
)

WRITTEN = ("red circle", "[red:blue:0.3] circle", "red [circle:star:0.3]", "red [circle|star]", "[red|blue] circle")


def seeded(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generator}


def from_prompts() -> list[Image.Image]:
    """One prompt, two that change after three tenths of the steps, and two that alternate; all of one seed."""
    draw = AutoPipelineForText2Image.from_pretrained("demo")
    draw.prompt_syntax = "weighted"
    return [draw(f"a large {what} on a white background", **seeded(4)).images[0] for what in WRITTEN]


def from_pictures() -> list[Image.Image]:
    """A picture, the picture drawn anew at three strengths, a mask, and what was drawn there."""
    draw = AutoPipelineForText2Image.from_pretrained("demo")
    redraw, inpaint = AutoPipelineForImage2Image.from_pipe(draw), AutoPipelineForInpainting.from_pipe(draw)
    picture = draw("a large red circle on a blue background", **seeded(4)).images[0]
    anew = [redraw(ANEW, image=picture, strength=strength, **seeded(5)).images[0] for strength in (0.15, 0.3, 0.6)]
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).rectangle((picture.width // 2, 0, picture.width, picture.height), fill="white")
    half = inpaint(THERE, image=picture, mask_image=mask, **seeded(5)).images[0]
    return [picture, *anew, mask.convert("RGB"), half]


def along_shapes() -> list[Image.Image]:
    """White shapes, what is drawn along them of three prompts, and of the last one without them."""
    net = ControlNetModel.from_pretrained(controlnets()["silhouette"])
    draw = StableDiffusionControlNetPipeline.from_pretrained("demo", controlnet=net)
    shapes = Image.new("RGB", (128, 128))
    ImageDraw.Draw(shapes).ellipse((14, 58, 62, 106), fill="white")
    ImageDraw.Draw(shapes).rectangle((76, 22, 112, 58), fill="white")
    drawn = [draw(prompt, image=shapes, **seeded(2)).images[0] for prompt in ALONG]
    return [shapes, *drawn, AutoPipelineForText2Image.from_pretrained("demo")(ALONG[-1], **seeded(2)).images[0]]


def side_by_side(row: list[Image.Image]) -> Image.Image:
    width, height = row[0].size
    sheet = Image.new("RGB", (len(row) * (width + GAP) - GAP, height), "white")
    for place, picture in enumerate(row):
        sheet.paste(picture, (place * (width + GAP), 0))
    return sheet


if __name__ == "__main__":
    side_by_side(from_pictures()).save(Path("docs/images/from-a-picture.png"), optimize=True)
    side_by_side(along_shapes()).save(Path("docs/images/controlnet.png"), optimize=True)
    side_by_side(from_prompts()).save(Path("docs/images/prompts.png"), optimize=True)
