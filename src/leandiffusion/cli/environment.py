"""`leandiffusion env`: the machine and the versions, for a person or as JSON."""

from __future__ import annotations

import json
from typing import Any

import typer

from ..core.wording import printable
from ..measure.environment import describe_environment


def run(as_json: bool = False) -> None:
    """Print every fact of `describe_environment`."""
    environment = describe_environment()
    if as_json:
        typer.echo(json.dumps(environment, indent=2))
    else:
        _print_table(environment)


def _print_table(environment: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    for section, facts in environment.items():
        for index, (name, value) in enumerate(facts.items()):
            table.add_row(section if index == 0 else "", name, _in_words(value))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a bug report is wider than the 80 columns that a pipe is taken for
        console.width = 200
    console.print(table)


def _in_words(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(" ".join(value) if isinstance(value, list) else str(value))
