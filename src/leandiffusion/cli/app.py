"""The commands and their options. Nothing heavy is imported until a command runs: `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from .bench import app as bench
from .flags import PANEL, with_flags
from .options import MAX_SEED, parse_dtype, parse_enable, parse_guidance, parse_memory, parse_size
from .report import in_one_line, print_whatever_comes

OUTPUTS = Path("outputs")

app = typer.Typer(
    name="leandiffusion",
    help="Stable Diffusion inference made for little memory and much speed.",
    epilog="Start with:  leandiffusion demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench, name="bench")

Out = Annotated[
    Path, typer.Option(metavar="PATH", help="A .png file, which is replaced, or a folder, where pictures are numbered.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the whole trace of an error.")]
Seed = Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Repeats a picture bit for bit on one machine.")]

Size = Annotated[
    Any, typer.Option(parser=parse_size, metavar="WxH", help="Pixels, multiples of 8.", show_default="the model's")
]
Dtype = Annotated[
    Any, typer.Option(parser=parse_dtype, metavar="fp32|fp16|bf16", help="Of the weights; fp16 on a GPU, else fp32.")
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

PLAN_EXAMPLES = """
Examples:

leandiffusion plan sdxl --memory 6GiB

leandiffusion plan ./stable-diffusion-v1-5 --memory 2GiB --size 512x768 --batch 4

leandiffusion plan sd15 --memory cuda=3GiB,cpu=8GiB --plot plan.png --save-plan plan.json
"""

GENERATE_EXAMPLES = """
Examples:

leandiffusion generate "a large yellow star on a blue background" --show

leandiffusion generate "an astronaut on mars" --model ./stable-diffusion-v1-5 --size 512x512 --steps 30

leandiffusion generate "a red circle" --lora night:0.8

leandiffusion generate --like outputs/0001-a-red-circle.png --steps 50

leandiffusion generate "a watercolour of a harbour" --image photo.jpg --strength 0.6

leandiffusion generate "a cat on the bench" --image photo.jpg --mask bench.png --padding-mask-crop 32

leandiffusion generate "an astronaut on mars" --model ./stable-diffusion-v1-5 --offload sequential --vae-tiling

leandiffusion generate "an astronaut on mars" --model ./stable-diffusion-v1-5 --memory 2GiB

leandiffusion generate "an astronaut on mars" --model ./sdxl --enable sequential_offload:resident_fraction=0.5
"""


@app.command(epilog=GENERATE_EXAMPLES)
@with_flags
def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to draw.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="demo|PATH|ID",
            help="The packaged model, a folder or .safetensors file, or a hub id.",
            show_default="demo",
        ),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Another VAE: a .safetensors file or a folder.", show_default="the model's"),
    ] = None,
    lora: Lora = [],  # noqa: B006 - typer's way to say: none
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What to keep out of the picture.")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="PICTURE", help="A picture to draw anew, as the prompt says.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="PICTURE", help="Where to draw --image anew: where this, as large, is white or transparent."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="0…1",
            help="How much of --image becomes new; 1 is all.",
            show_default="0.8, with --mask 1; SDXL less",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="fit|fill|stretch",
            help="How --image gets to --size, or the model's: scaled into it, scaled and cut, or pulled.",
            show_default="fit",
        ),
    ] = None,
    padding_mask_crop: Annotated[
        int | None,
        typer.Option(min=0, metavar="PIXELS", help="Draw only what is around --mask, and so much more, at full size."),
    ] = None,
    prompt_syntax: Annotated[
        str | None,
        typer.Option(
            metavar="plain|weighted",
            help="weighted: (word:1.3), [word], BREAK, and prompts of any length.",
            show_default="plain",
        ),
    ] = None,
    embedding: Annotated[
        list[str],
        typer.Option(
            metavar="PATH[:WORD]",
            help="A textual inversion, and the word that stands for it; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 - typer's way to say: none
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[
        Any,
        typer.Option(
            parser=parse_guidance,
            metavar="SCALE",
            help="Classifier-free guidance: how closely to follow the prompt. 1 is off.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Such as ddim, euler-a, dpm++-karras.", show_default="the model's"),
    ] = None,
    size: Size = None,
    seed: Seed = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures; each has the next seed.")] = 1,
    dtype: Dtype = None,
    device: Device = None,
    like: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Take everything not said here from this picture's record.")
    ] = None,
    out: Out = OUTPUTS,
    show: Annotated[bool, typer.Option("--show/--no-show", help="Draw the picture in the terminal too.")] = False,
    memory: Memory = None,
    allow: Allow = "exact",
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", rich_help_panel=PANEL, help="The settings of a plan that `leandiffusion plan` saved."
        ),
    ] = None,
    flags: Any = (),
    enable: Enable = [],  # noqa: B006 - typer's way to say: none
    verbose: Verbose = False,
) -> None:
    """Draw pictures from a prompt, and save each with the record to draw it again."""
    with in_one_line(verbose):
        from . import generate as command
        from .generate_options import GenerateOptions
        from .techniques import TechniqueOptions

        width, height = size or (None, None)
        options = GenerateOptions(
            prompt=prompt,
            model=model,
            vae=vae,
            lora=tuple(lora) or None,
            negative_prompt=negative,
            image=image,
            mask=mask,
            strength=strength,
            resize=resize,
            padding_mask_crop=padding_mask_crop,
            prompt_syntax=prompt_syntax,
            embeddings=tuple(embedding) or None,
            steps=steps,
            guidance_scale=guidance,
            scheduler=scheduler,
            width=width,
            height=height,
            seed=seed,
            dtype=dtype,
            device=device,
        )
        technique_options = TechniqueOptions((*flags, *enable), memory=memory, allow=allow, plan=plan)
        command.run(options, out, count=count, like=like, show=show, technique_options=technique_options)


@app.command(epilog=PLAN_EXAMPLES)
def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="sd15, sdxl or another family; demo; a folder, file or hub id.")
    ] = "demo",
    memory: Memory = None,
    size: Size = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per call.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[bool, typer.Option(help="Whether there is classifier-free guidance.")] = True,
    dtype: Dtype = None,
    device: Device = None,
    allow: Allow = "exact",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw peak against time of all combinations.")
    ] = None,
    save_plan: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the plan, for generate --plan.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Try the settings and the runners-up for real, and rank them anew.")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where --calibrate makes a family's random weights, and keeps them.",
            show_default="a temporary folder",
        ),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Measure this machine's speed anew.")] = False,
    verbose: Verbose = False,
) -> None:
    """Which settings for this machine: the fastest that fit a budget, what they take, and why not others."""
    with in_one_line(verbose):
        from . import planning as command

        asked = command.PlanOptions(
            model=model, memory=memory, size=size, batch=batch, steps=steps, guidance=guidance, dtype=dtype,
            device=device, allow=allow,
        )  # fmt: skip
        command.run(
            asked, as_json=as_json, plot=plot, save_plan=save_plan, measure_anew=profile, calibrate=calibrate, work=work
        )


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Latents that `generate` kept.")],
    model: Annotated[
        str | None, typer.Option(metavar="demo|PATH|ID", help="Another model.", show_default="the one that drew them")
    ] = None,
    vae: Annotated[str | None, typer.Option(metavar="PATH", help="Another VAE.", show_default="the model's")] = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Out = OUTPUTS,
    memory: Memory = None,
    enable: Enable = [],  # noqa: B006 - typer's way to say: none
    verbose: Verbose = False,
) -> None:
    """Make pictures of latents that could not be decoded when they were drawn, because memory ran out, say."""
    with in_one_line(verbose):
        from . import decoding as command
        from .generate_options import GenerateOptions
        from .techniques import TechniqueOptions

        options = GenerateOptions(model=model, vae=vae, dtype=dtype, device=device)
        command.run(file, out, options, TechniqueOptions(tuple(enable), memory=memory))


@app.command()
def demo(
    seed: Seed = None,
    out: Out = OUTPUTS,
    show: Annotated[bool, typer.Option("--show/--no-show", help="Draw the picture in the terminal too.")] = True,
    verbose: Verbose = False,
) -> None:
    """Draw a picture with the packaged model: nothing to download, a few seconds on any machine."""
    with in_one_line(verbose):
        from . import demo as command

        command.run(out, seed=seed, show=show)


@app.command()
def env(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False, verbose: Verbose = False) -> None:
    """Versions, processor, memory and devices: what a bug report needs."""
    with in_one_line(verbose):
        from . import environment as command

        command.run(as_json)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"leandiffusion {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Stable Diffusion inference made for little memory and much speed."""


def main() -> None:
    """Entry point of the `leandiffusion` command."""
    print_whatever_comes()
    app(prog_name="leandiffusion")
