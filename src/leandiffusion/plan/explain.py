"""A plan in words and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..core.units import format_bytes, format_seconds
from .plan import Plan, Settings
from .prediction import Prediction, StagePrediction

if TYPE_CHECKING:
    from rich.console import RenderableType

MEASURED = ("measured peak", "measured time")

ROWS = {"encode": "prompt", "image": "image prompt", "picture": "picture", "denoise": "steps", "decode": "decode"}


def headline(plan: Plan) -> str:
    """'sd1 on cpu in float32: 512x512, 50 steps, within 2 GiB'."""
    call = plan.call
    pictures = "" if call.batch == 1 else f", {call.batch} pictures at a time"
    guidance = "" if call.guidance else " without guidance"
    given = " from a picture" if call.pictures else ""
    controls = {0: "", 1: " with a ControlNet"}.get(call.controls, f" with {call.controls} ControlNets")
    seen = {0: "", 1: " with an image prompt"}.get(call.image_prompts, f" with {call.image_prompts} image prompts")
    return (
        f"{plan.model} on {plan.device} in {plan.dtype}: {call.width}x{call.height}{pictures}, {plan.steps} steps"
        f"{guidance}{given}{controls}{seen}, within {plan.budget}"
    )


def takes(settings: Settings) -> str:
    """'1.2 GiB and 35 s'."""
    prediction = settings.prediction
    host = f" (and {format_bytes(prediction.host)} of host memory)" if prediction.host else ""
    return f"{format_bytes(prediction.peak)}{host} and {format_seconds(prediction.seconds)}"


def stage_rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Stage, its peak, its time, and where they were measured these too; the last row is the whole call."""
    takes = [each for each in (plan.prediction, plan.settings.measured) if each is not None]
    for name in plan.prediction.stages:
        title = ROWS[name] if name != "denoise" else f"{plan.steps} steps"
        stages = (each.stages[name] for each in takes)
        yield title, *(cell for each in stages for cell in _cells(each))
    yield "in all", *(cell for each in takes for cell in _cells(each))


def other_rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """The runners-up: settings, peak, time, and where they were measured these too."""
    for settings in plan.runners_up:
        takes = [each for each in (settings.prediction, settings.measured) if each is not None]
        yield str(settings), *(cell for each in takes for cell in _cells(each))


def _cells(takes: StagePrediction | Prediction) -> tuple[str, str]:
    return format_bytes(takes.peak), format_seconds(takes.seconds)


def rich_tables(plan: Plan) -> list[RenderableType]:
    """The answer for a terminal: what was chosen, what it takes by stage, the runners-up, and why not the rest."""
    from rich.text import Text

    parts: list[RenderableType] = [Text(headline(plan), style="bold"), Text(f"\nChosen: {plan.settings}\n")]
    figures = ("peak", "time") if plan.settings.measured is None else ("peak", "time", *MEASURED)
    parts.append(_table(("stage", *figures), list(stage_rows(plan))))
    if plan.runners_up:
        parts += [Text("\nRunners-up", style="bold"), _table(("settings", *figures), list(other_rows(plan)))]
    if plan.unused:
        parts += [Text("\nNot used", style="bold"), _table(("technique", "why"), list(plan.unused.items()))]
    return parts


def _table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        figures = name in ("peak", "time", *MEASURED)
        table.add_column(name, justify="right" if figures else "left", no_wrap=figures)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
