"""`leandiffusion batch` and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .arguments import Allow, Enable, Memory, PlanFile, Verbose
from .flags import with_flags
from .picture_options import with_picture_options
from .report import in_one_line

EXAMPLES = """
Examples:

leandiffusion batch prompts.jsonl --out pictures

leandiffusion batch prompts.csv --out pictures --model ./stable-diffusion-v1-5 --steps 30 --memory 2GiB

echo '{"prompt": "a red circle", "seed": 7}' | leandiffusion batch - --out pictures

A row has the options of one picture by name: prompt, negative_prompt, seed, steps, guidance_scale, size or width and
height, scheduler, model, lora, image, strength and so on. What it leaves out is taken from the command line.
"""


@with_picture_options
@with_flags
def batch(
    source: Annotated[
        str, typer.Argument(metavar="LIST", help="A .jsonl file, an object a line; a .csv file; or - for JSON lines.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where pictures go. Those that are there are not drawn again.")
    ],
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Draw on a Ray cluster: auto, HOST:PORT, or local for one on this machine."
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pipelines on the cluster.", show_default="one for each GPU, without any for each machine"
        ),
    ] = None,
    options: Any = None,
    memory: Memory = None,
    allow: Allow = "exact",
    plan: PlanFile = None,
    flags: Any = (),
    enable: Enable = [],  # noqa: B006
    verbose: Verbose = False,
) -> None:
    """Draw a list of pictures into a folder, each once; given again, it goes on where it stopped."""
    with in_one_line(verbose):
        from ..drawing.techniques import TechniqueOptions
        from . import batching as command

        techniques = TechniqueOptions((*flags, *enable), memory=memory, allow=allow, plan=plan)
        if actors is not None and ray is None:
            raise typer.BadParameter("it belongs to --ray, and there is none.", param_hint="--actors")
        cluster = None if ray is None else command.Cluster(ray, actors)
        command.run(source, out, options, techniques, cluster)
