"""The commands and their options. Nothing heavy is imported until a command runs: `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from .bench import app as bench
from .flags import PANEL, with_flags
from .options import MAX_SEED, parse_dtype, parse_enable, parse_guidance, parse_size
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

GENERATE_EXAMPLES = """
Examples:

leandiffusion generate "a large yellow star on a blue background" --show

leandiffusion generate "an astronaut on mars" --model ./stable-diffusion-v1-5 --size 512x512 --steps 30

leandiffusion generate --like outputs/0001-a-red-circle.png --steps 50

leandiffusion generate "an astronaut on mars" --model ./stable-diffusion-v1-5 --offload sequential --vae-tiling

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
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What to keep out of the picture.")] = None,
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
    size: Annotated[
        Any, typer.Option(parser=parse_size, metavar="WxH", help="Pixels, multiples of 8.", show_default="the model's")
    ] = None,
    seed: Seed = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures; each has the next seed.")] = 1,
    dtype: Annotated[
        Any,
        typer.Option(parser=parse_dtype, metavar="fp32|fp16|bf16", help="Of the weights; fp16 on a GPU, else fp32."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Such as cpu, cuda:1, mps; the GPU if there is one.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Take everything not said here from this picture's record.")
    ] = None,
    out: Out = OUTPUTS,
    show: Annotated[bool, typer.Option("--show/--no-show", help="Draw the picture in the terminal too.")] = False,
    flags: Any = (),
    enable: Annotated[
        list[Any],
        typer.Option(
            parser=parse_enable,
            metavar="NAME[:SETTING=VALUE,…]",
            rich_help_panel=PANEL,
            help="Any technique of the price list by its name, with its settings; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 - typer's way to say: none
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
            negative_prompt=negative,
            steps=steps,
            guidance_scale=guidance,
            scheduler=scheduler,
            width=width,
            height=height,
            seed=seed,
            dtype=dtype,
            device=device,
        )
        technique_options = TechniqueOptions((*flags, *enable))
        command.run(options, out, count=count, like=like, show=show, technique_options=technique_options)


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
