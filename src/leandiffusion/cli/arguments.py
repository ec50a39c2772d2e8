"""The options of commands that several of them have, or that need words: types for typer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..drawing.values import MAX_SEED
from .flags import PANEL
from .options import parse_dtype, parse_enable, parse_guidance, parse_memory, parse_size

Out = Annotated[
    Path, typer.Option(metavar="PATH", help="A .png file, which is replaced, or a folder, where pictures are numbered.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the whole trace of an error.")]
Seed = Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Repeats a picture bit for bit on one machine.")]

Size = Annotated[
    Any, typer.Option(parser=parse_size, metavar="WxH", help="Pixels, multiples of 8.", show_default="the model's")
]
Dtype = Annotated[
    Any,
    typer.Option(
        parser=parse_dtype,
        metavar="fp32|fp16|bf16",
        help="Of the weights; fp16 on a GPU, on a CPU the faster of fp32 and bf16.",
    ),
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Such as cpu, cuda:1, mps; the GPU if there is one.")]
Memory = Annotated[
    Any,
    typer.Option(
        parser=parse_memory,
        metavar="SIZE|DEVICE=SIZE,…",
        rich_help_panel=PANEL,
        help="Memory to stay within, such as 2GiB (on a CPU that of the whole process), or cuda=6GiB,cpu=8GiB.",
        show_default="what is free, less 5%",
    ),
]
Allow = Annotated[
    str,
    typer.Option(
        metavar="exact|rounding|approximate",
        rich_help_panel=PANEL,
        help="What --memory may choose: exact draws the same picture, rounding allows half precision, approximate "
        "another picture.",
    ),
]

Enable = Annotated[
    list[Any],
    typer.Option(
        parser=parse_enable,
        metavar="NAME[:SETTING=VALUE,…]",
        rich_help_panel=PANEL,
        help="Any technique of the price list by its name, with its settings; may be repeated.",
        show_default=False,
    ),
]

Lora = Annotated[
    list[str],
    typer.Option(
        metavar="PATH[:SCALE]",
        help="A LoRA's .safetensors file or hub id, and how much it weighs; may be repeated. The demo has 'night'.",
        show_default=False,
    ),
]

Negative = Annotated[str | None, typer.Option(metavar="TEXT", help="What to keep out of the picture.")]

Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.")]

PlanFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json", rich_help_panel=PANEL, help="The settings of a plan that `leandiffusion plan` saved."
    ),
]

Picture = Annotated[str | None, typer.Option(metavar="PICTURE", help="A picture to draw anew, as the prompt says.")]

Mask = Annotated[
    str | None,
    typer.Option(metavar="PICTURE", help="Where to draw --image anew: where this, as large, is white or transparent."),
]

Strength = Annotated[
    float | None,
    typer.Option(
        metavar="0…1",
        help="How much of --image becomes new; 1 is all.",
        show_default="0.8, with --mask 1; SDXL less",
    ),
]

Resize = Annotated[
    str | None,
    typer.Option(
        metavar="fit|fill|stretch",
        help="How --image gets to --size, or the model's: scaled into it, scaled and cut, or pulled.",
        show_default="fit",
    ),
]

PaddingMaskCrop = Annotated[
    int | None,
    typer.Option(min=0, metavar="PIXELS", help="Draw only what is around --mask, and so much more, at full size."),
]

ControlNet = Annotated[
    list[str],
    typer.Option(
        metavar="PATH[:SCALE]",
        help="A ControlNet: its folder, .safetensors file or hub id, and how much it counts; may be repeated. The demo "
        "has 'silhouette'.",
        show_default=False,
    ),
]

Previewed = Annotated[
    str | None,
    typer.Option(
        "--preview",
        metavar="FILE.png|terminal",
        help="Show the picture while it is drawn: in this file, rewritten every few steps, or in the terminal.",
    ),
]

PreviewVae = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="What decodes --preview: a small VAE (TAESD) takes little time, the model's own as long as at the end.",
        show_default="the model's",
    ),
]

PlannedControlNet = Annotated[
    list[str],
    typer.Option(
        "--controlnet",
        metavar="PATH|FAMILY",
        help="A ControlNet that it is drawn with, or sd15, sdxl, … for one of that family; may be repeated.",
        show_default=False,
    ),
]

ControlImage = Annotated[
    list[str],
    typer.Option(
        metavar="PICTURE",
        help="What the --controlnet sees: edges, depth, a pose. One for each.",
        show_default=False,
    ),
]

GuessMode = Annotated[bool, typer.Option("--guess-mode", help="The --controlnet counts without a prompt too.")]

ControlGuidanceStart = Annotated[
    float | None,
    typer.Option("--control-start", metavar="0…1", help="Share of the steps before the --controlnet counts."),
]

ControlGuidanceEnd = Annotated[
    float | None, typer.Option("--control-end", metavar="0…1", help="Share of the steps after which it counts no more.")
]

PromptSyntax = Annotated[
    str | None,
    typer.Option(
        metavar="plain|weighted",
        help="weighted: (word:1.3), \\[word], BREAK, and prompts of any length.",
        show_default="plain",
    ),
]

Embedding = Annotated[
    list[str],
    typer.Option(
        metavar="PATH[:WORD]",
        help="A textual inversion, and the word that stands for it; may be repeated.",
        show_default=False,
    ),
]

GuidanceScale = Annotated[
    Any,
    typer.Option(
        parser=parse_guidance,
        metavar="SCALE",
        help="Classifier-free guidance: how closely to follow the prompt. 1 is off.",
    ),
]

IPAdapter = Annotated[
    list[str],
    typer.Option(
        "--ip-adapter",
        metavar="PATH",
        help="An IP-Adapter's .safetensors file, its image_encoder beside it or a folder above; may be repeated.",
        show_default=False,
    ),
]

IPImage = Annotated[
    list[str],
    typer.Option(
        "--ip-image",
        metavar="PICTURE[:SCALE]",
        help="What the --ip-adapter sees, and how much it counts. One for each.",
        show_default=False,
    ),
]

PagScale = Annotated[
    float | None,
    typer.Option(
        "--pag-scale", metavar="SCALE", help="Perturbed attention: shapes hold together better; 3 is usual. 0 is off."
    ),
]

PagLayers = Annotated[
    list[str],
    typer.Option(
        "--pag-layers",
        metavar="NAME",
        help="Where --pag-scale perturbs attention: part of the names of the UNet's layers; may be repeated.",
        show_default="mid",
    ),
]

Scheduler = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Such as ddim, euler-a, dpm++-karras.", show_default="the model's"),
]

Vae = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Another VAE: a .safetensors file or a folder.", show_default="the model's"),
]

Model = Annotated[
    str | None,
    typer.Option(
        metavar="demo|PATH|ID",
        help="The packaged model, a folder or .safetensors file, or a hub id.",
        show_default="demo",
    ),
]
