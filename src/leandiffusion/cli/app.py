"""The commands and their options. Nothing heavy is imported until a command runs: `--help` answers at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from .arguments import (
    Allow,
    Device,
    Dtype,
    Enable,
    IPAdapter,
    Memory,
    Out,
    PlanFile,
    PlannedControlNet,
    Previewed,
    PreviewVae,
    Seed,
    Size,
    Verbose,
)
from .batch import EXAMPLES as BATCH_EXAMPLES
from .batch import batch
from .bench import app as bench
from .flags import with_flags
from .picture_options import with_picture_options
from .report import in_one_line, print_whatever_comes
from .serving import EXAMPLES as SERVE_EXAMPLES
from .serving import serve

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
app.command(epilog=SERVE_EXAMPLES)(serve)

PLAN_EXAMPLES = """
Examples:

leandiffusion plan sdxl --memory 6GiB

leandiffusion plan ./stable-diffusion-v1-5 --memory 2GiB --size 512x768 --batch 4

leandiffusion plan sd15 --memory cuda=3GiB,cpu=8GiB --plot plan.png --save-plan plan.json

leandiffusion plan sd15 --memory 3GiB --pictures 1 --controlnet sd15
"""

GENERATE_EXAMPLES = """
Examples:

leandiffusion generate "a large yellow star on a blue background" --show

leandiffusion generate "an astronaut on mars" --model ./stable-diffusion-v1-5 --size 512x512 --steps 30

leandiffusion generate "a red circle" --lora night:0.8

leandiffusion generate "an astronaut on mars" --model ./stable-diffusion-v1-5 --preview now.png --preview-vae ./taesd

leandiffusion generate --like outputs/0001-a-red-circle.png --steps 50

leandiffusion generate "a watercolour of a harbour" --image photo.jpg --strength 0.6

leandiffusion generate "a cat on the bench" --image photo.jpg --mask bench.png --padding-mask-crop 32

leandiffusion generate "an astronaut on mars" --model ./stable-diffusion-v1-5 --offload sequential --vae-tiling

leandiffusion generate "an astronaut on mars" --model ./stable-diffusion-v1-5 --memory 2GiB

leandiffusion generate "an astronaut on mars" --model ./sdxl --enable sequential_offload:resident_fraction=0.5
"""


@app.command(epilog=GENERATE_EXAMPLES)
@with_picture_options
@with_flags
def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to draw.")] = None,
    options: Any = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures; each has the next seed.")] = 1,
    like: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Take everything not said here from this picture's record.")
    ] = None,
    out: Out = OUTPUTS,
    show: Annotated[bool, typer.Option("--show/--no-show", help="Draw the picture in the terminal too.")] = False,
    preview: Previewed = None,
    preview_vae: PreviewVae = None,
    preview_every: Annotated[int, typer.Option(min=1, metavar="STEPS", help="How often --preview is renewed.")] = 5,
    memory: Memory = None,
    allow: Allow = "exact",
    plan: PlanFile = None,
    flags: Any = (),
    enable: Enable = [],  # noqa: B006 - typer's way to say: none
    verbose: Verbose = False,
) -> None:
    """Draw pictures from a prompt, and save each with the record to draw it again."""
    with in_one_line(verbose):
        from ..drawing.techniques import TechniqueOptions
        from . import generate as command
        from .preview import PreviewOptions

        options = replace(options, prompt=prompt)
        technique_options = TechniqueOptions((*flags, *enable), memory=memory, allow=allow, plan=plan)
        if preview is None and preview_vae is not None:
            raise typer.BadParameter("it belongs to --preview, and there is none.", param_hint="--preview-vae")
        showing = None if preview is None else PreviewOptions(preview, preview_vae, preview_every)
        command.run(
            options, out, count=count, like=like, show=show, technique_options=technique_options, preview=showing
        )  # fmt: skip


app.command(epilog=BATCH_EXAMPLES)(batch)


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
    pictures: Annotated[int, typer.Option(min=0, help="Pictures to draw from, which are encoded first.")] = 0,
    controlnet: PlannedControlNet = [],  # noqa: B006 - typer's way to say: none
    ip_adapter: IPAdapter = [],  # noqa: B006
    image_prompts: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures that each --ip-adapter sees.", show_default="one, as generate gives it"),
    ] = None,
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
            model=model, memory=memory, size=size, batch=batch, steps=steps, guidance=guidance, pictures=pictures,
            controlnet=tuple(controlnet), ip_adapter=tuple(ip_adapter), image_prompts=image_prompts,
            dtype=dtype, device=device, allow=allow,
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
        from ..drawing.options import DrawingOptions
        from ..drawing.techniques import TechniqueOptions
        from . import decoding as command

        options = DrawingOptions(model=model, vae=vae, dtype=dtype, device=device)
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
