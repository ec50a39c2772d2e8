"""`leandiffusion serve`: the options. What they mean is `server.serve`'s."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .arguments import Allow, Device, Dtype, Memory, Verbose
from .report import in_one_line

EXAMPLES = """
Examples:

leandiffusion serve

leandiffusion serve --model sd15=./stable-diffusion-v1-5 --model sdxl=./sdxl --memory 8GiB

LEANDIFFUSION_API_KEY=… leandiffusion serve --host 0.0.0.0 --allow-host pictures.lan
"""

ACCESS = "Who may ask"
QUEUE = "The queue"


def serve(
    model: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PATH",
            help="A model, and the name that clients call it by; may be repeated. Or demo, a path or a hub id, whose "
            "last part is the name then.",
            show_default="demo",
        ),
    ] = [],  # noqa: B006 - typer's way to say: none
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", rich_help_panel=ACCESS, help="0.0.0.0 lets other machines draw: with a key."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, rich_help_panel=ACCESS, help="0: one that is free.")] = 8188,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            rich_help_panel=ACCESS,
            help="Clients have to send it. Command lines can be read by others here: LEANDIFFUSION_API_KEY is safer.",
            show_default=False,
        ),
    ] = None,
    allow_host: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            rich_help_panel=ACCESS,
            help="A name that the server is called by, besides addresses and localhost; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    allow_origin: Annotated[
        list[str],
        typer.Option(
            metavar="URL",
            rich_help_panel=ACCESS,
            help="Where a page comes from that may use the server, such as https://example.org; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    max_body: Annotated[
        Any, typer.Option(metavar="SIZE", rich_help_panel=ACCESS, help="Of a request's body, uploads included.")
    ] = "32MiB",
    queue: Annotated[int, typer.Option(min=1, rich_help_panel=QUEUE, help="Requests that may wait.")] = 32,
    timeout: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", rich_help_panel=QUEUE, help="From a request to its answer, at most."),
    ] = 600,
    drain: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", rich_help_panel=QUEUE, help="After SIGTERM, for what was accepted to be answered."
        ),
    ] = 30,
    memory: Memory = None,
    allow: Allow = "exact",
    dtype: Dtype = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Serve pictures over HTTP, as OpenAI's images API does: http://127.0.0.1:8188/v1."""
    with in_one_line(verbose):
        from ..core.units import parse_bytes
        from ..server.serve import ServeOptions, key_of_environment, run

        run(
            ServeOptions(
                models=tuple(model) or ("demo",), host=host, port=port, api_key=api_key or key_of_environment(),
                allow_host=tuple(allow_host), allow_origin=tuple(allow_origin), memory=memory, allow=allow, dtype=dtype,
                device=device, queue=queue, timeout=timeout, drain=drain, most_bytes=parse_bytes(max_body),
            )
        )  # fmt: skip
