"""`leandiffusion bench`: the suites, and comparing two runs. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .options import parse_dtype
from .report import in_one_line

if TYPE_CHECKING:
    from ..bench.suites import Suite


class BenchCommands(TyperGroup):
    """The commands of `bench`. Suites are only read, and their commands added, when `bench` itself is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        self._add_suites()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        self._add_suites()
        return super().get_command(ctx, cmd_name)

    def _add_suites(self) -> None:
        from ..bench.suites import suites

        if not set(suites) <= set(self.commands):
            added = typer.Typer()
            for name in suites:
                _add(added, suites.get(name))
            self.commands = {**typer.main.get_group(added).commands, **self.commands}


app = typer.Typer(
    cls=BenchCommands,
    help="Measure what each technique does to time, memory and the picture, on this machine.",
    no_args_is_help=True,
)

EXAMPLES = """
Examples:

leandiffusion bench {suite} --quick

leandiffusion bench {suite} --model shape:sd15 {size}--steps 10

leandiffusion bench {suite} --model ./stable-diffusion-v1-5 {peers}--out mine.jsonl

leandiffusion bench {suite} --rows {rows}
"""

Model = Annotated[
    str,
    typer.Option(
        metavar="demo|PATH|ID|shape:NAME",
        help="The packaged model, a checkpoint, or a full-size network with random weights: sd15, sdxl or another.",
    ),
]
Size = Annotated[int | None, typer.Option(min=64, help="Side of the square pictures.", show_default="the model's")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Measured steps per round.", show_default="50 on a GPU, 4 on a CPU")
]
Batch = Annotated[int, typer.Option(min=1, help="Pictures per call.")]
Dtype = Annotated[
    Any,
    typer.Option(
        parser=parse_dtype, metavar="fp16|bf16|fp32", help="The dtype of rows in half precision.",
        show_default="fp16 on a GPU; bf16 on a CPU that multiplies it, else fp32",
    ),
]  # fmt: skip
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Such as cpu or cuda:1; the GPU if there is one.")]
Repeat = Annotated[int | None, typer.Option(min=1, help="Rounds, in which rows take turns.", show_default="3")]
Rows = Annotated[str | None, typer.Option(metavar="NAME,…", help="Only these rows; 'all' adds those that take long.")]
Peers = Annotated[
    str | None,
    typer.Option(metavar="NAME,…", help="Also other programs, in the same rounds: such as diffusers,openvino."),
]
Quick = Annotated[bool, typer.Option("--quick", help="A first look: one round, two steps, 256 pixels at most.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE.jsonl", help="Tables and plots go beside it.", show_default="numbered in bench-results"),
]
Work = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Keeps models made of a shape, and what peers convert, for the next run."),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the whole trace of an error.")]


def _add(app: typer.Typer, suite: Suite) -> None:
    """The command of a suite. One whose rows have sizes of their own takes no --size and no --peers."""

    def run(
        model: Model = "shape:sd15", size: Size = None, steps: Steps = None, batch: Batch = 1, dtype: Dtype = None,
        device: Device = None, repeat: Repeat = None, rows: Rows = None, peers: Peers = None, quick: Quick = False,
        out: Out = None, work: Work = None, verbose: Verbose = False,
    ) -> None:  # fmt: skip
        _run(suite.name, out, work, verbose, model, size, steps, batch, dtype, device, repeat, rows, peers, quick)

    def run_own_sizes(
        model: Model = "shape:sd15", steps: Steps = None, batch: Batch = 1, dtype: Dtype = None, device: Device = None,
        repeat: Repeat = None, rows: Rows = None, quick: Quick = False, out: Out = None, work: Work = None,
        verbose: Verbose = False,
    ) -> None:  # fmt: skip
        _run(suite.name, out, work, verbose, model, None, steps, batch, dtype, device, repeat, rows, None, quick)

    own = suite.own_sizes
    size, peers = ("", "") if own else ("--size 512 ", "--peers diffusers,openvino ")
    examples = EXAMPLES.format(suite=suite.name, size=size, peers=peers, rows=suite.example)
    app.command(suite.name, help=suite.about, epilog=examples)(run_own_sizes if own else run)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.jsonl")],
    new: Annotated[Path, typer.Argument(metavar="NEW.jsonl")],
    fail_over: Annotated[str, typer.Option(metavar="SHARE", help="How much worse is too much, such as 10%.")] = "10%",
    verbose: Verbose = False,
) -> None:
    """Compare two runs by their ratios; exit code 1 when a row became slower or takes more memory."""
    with in_one_line(verbose):
        from . import benching

        worse = benching.compare_files(old, new, fail_over)
    raise typer.Exit(1 if worse else 0)


def _run(
    suite: str, out: Path | None, work: Path | None, verbose: bool, model: str, size: int | None, steps: int | None,
    batch: int, dtype: str | None, device: str | None, repeat: int | None, rows: str | None, peers: str | None,
    quick: bool,
) -> None:  # fmt: skip
    with in_one_line(verbose):
        from ..bench.run.plan import BenchOptions
        from . import benching

        options = BenchOptions(
            suite, model, size, steps, batch, dtype, device, repeat, _names(rows), _names(peers), quick
        )
        benching.run(options, out, work)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
