"""Records as tables: for a terminal with rich, for a page in Markdown. Both draw the same sheets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..record import Records
from .against import against_sheet
from .describe import INTERRUPTED, facts, headline, notes, settings, suite_of, troubles
from .sheets import Sheet, main_sheet

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WORDY = {"row", "program", "our row", "verdict"}
"""Columns of words: aligned to the left, and folded where a terminal is narrow."""


def rich_tables(records: Records) -> list[RenderableType]:
    """Everything there is to say of a run: the figures, the rows that were not measured, each with its reason, other
    programs, the machine and the settings."""
    from rich.text import Text

    sheet, against = main_sheet(records), against_sheet(records)
    parts = [part for group in suite_of(records).columns if len((part := sheet.only(group)).columns) > 1]
    drawn: list[RenderableType] = [Text(sheet.title, style="bold")]
    if not records.complete:
        drawn.append(Text(INTERRUPTED, style="bold red"))
    drawn += [part for each in parts for part in _drawn(each)]
    drawn += [Text(f"Not measured: {title}: {reason}", style="yellow") for title, reason in troubles(records)]
    if against:
        drawn += [Text(f"\n{against.title}", style="bold"), *_drawn(against)]
    return [*drawn, Text(""), _facts_table(records)]


def markdown(records: Records, level: int = 1, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The same as a page of Markdown, its title a heading of `level`; `pictures` are (what it shows, link)."""
    above, below = "#" * level, "#" * (level + 1)
    sheet, against, failed = main_sheet(records), against_sheet(records), troubles(records)
    parts = [f"{above} {suite_of(records).title}", headline(records)]
    if not records.complete:
        parts.append(f"**{INTERRUPTED}**")
    parts += [f"![{alt}]({link})" for alt, link in pictures]
    parts += [_table(sheet) if sheet.rows else "No row was measured.", _bullets(sheet.legend.values())]
    if failed:
        parts += [f"{below} Not measured", _bullets(f"**{title}**: {reason}" for title, reason in failed)]
    if against:
        parts += [f"{below} {against.title}", _table(against), _bullets(against.legend.values())]
    parts += [f"{below} Machine and work", _bullets(f"**{what}**: {words}" for what, words in facts(records))]
    parts += [
        f"{below} Settings",
        _bullets(f"**{title}** (`{name}`): {about}" for name, title, about in settings(records)),
    ]
    if said := notes(records):
        parts += [f"{below} Notes", _bullets(f"**{title}**: {note}" for title, note in said)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _drawn(sheet: Sheet) -> list[RenderableType]:
    """The table, and what its columns mean."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in sheet.columns:
        wordy = heading in WORDY
        table.add_column(heading, justify="left" if wordy else "right", overflow="fold", no_wrap=not wordy)
    for row in sheet.rows:
        cells = zip(sheet.columns, row, strict=True)
        table.add_row(*(Text(cell, style="bold red" if _bad(heading, cell) else "") for heading, cell in cells))
    return [table, *(Text(line, style="dim") for line in sheet.legend.values())]


def _facts_table(records: Records) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for what, words in facts(records):
        table.add_row(what, Text(words))
    for index, (name, title, about) in enumerate(settings(records)):
        table.add_row("" if index else "Settings", Text(f"{title} ({name}): {about}"))
    for index, (title, note) in enumerate(notes(records)):
        table.add_row("" if index else "Notes", Text(f"{title}: {note}"))
    return table


def _bad(heading: str, cell: str) -> bool:
    return heading == "verdict" and ("slower" in cell or "bigger" in cell)


def _table(sheet: Sheet) -> str:
    rules = ["---" if heading in WORDY else "---:" for heading in sheet.columns]
    lines = [sheet.columns, rules]
    for row in sheet.rows:
        cells = zip(sheet.columns, row, strict=True)
        lines.append([_escaped(f"**{cell}**" if _bad(heading, cell) else cell) for heading, cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
