"""Steps of making the demo model, each resumable: vae, then unet, then export and score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True)
RUNS = Path("runs")
Seed = Annotated[int, typer.Option(help="Seed of weights, scenes, captions and noise.")]
Threads = Annotated[int, typer.Option(help="CPU threads to use.")]


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


@app.command()
def vae(seed: Seed = 1, threads: Threads = 2) -> None:
    """Train the autoencoder into runs/vae, resuming if it is there."""
    from .vae import train_vae

    _threads(threads)
    train_vae(RUNS / "vae", seed)


@app.command()
def unet(
    seed: Seed = 1,
    vae: Annotated[Path, typer.Option(help="A VAE run, or a pipeline ('demo' is the packaged one).")] = RUNS / "vae",
    start: Annotated[Path | None, typer.Option(help="A pipeline ('demo') whose weights to begin with.")] = None,
    threads: Threads = 2,
) -> None:
    """Train UNet and text model into runs/unet, resuming if it is there."""
    from .unet import train_unet

    _threads(threads)
    train_unet(RUNS / "unet", vae, seed, start)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where the pipeline folder goes.")] = RUNS / "model",
    seed: Seed = 1,
    vae: Annotated[Path, typer.Option(help="A VAE run, or a pipeline ('demo' is the packaged one).")] = RUNS / "vae",
) -> None:
    """Write what is trained so far as a pipeline folder in float16."""
    from .export import export as write

    write(RUNS / "unet", vae, folder, seed)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="A pipeline folder.")] = RUNS / "model",
    count: Annotated[int, typer.Option(help="Held-out prompts, half of one thing, half of two.")] = 300,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 2.5,
    sheet: Annotated[Path | None, typer.Option(help="Save a contact sheet here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the score here, as docs/demo-model.md is.")] = None,
    threads: Threads = 2,
) -> None:
    """Draw held-out prompts and judge them by their pixels."""
    from .score import Scoring, describe, draw_and_score

    _threads(threads)
    settings = Scoring(count, steps, guidance)
    table = draw_and_score(folder, settings, sheet).table()
    if report is not None:
        report.write_text(describe(settings, table))
    print(table)


@app.command()
def grid(
    path: Annotated[Path, typer.Argument(help="The picture to write.")] = Path("docs/images/demo-grid.png"),
    model: Annotated[str, typer.Option(help="'demo' or a pipeline folder.")] = "demo",
    threads: Threads = 2,
) -> None:
    """Draw the README's grid of pictures."""
    from .grid import draw_grid

    _threads(threads)
    draw_grid(Path(model), path)


if __name__ == "__main__":
    app()
