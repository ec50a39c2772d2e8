"""The rows that techniques declare: each alone, with its default settings."""

from __future__ import annotations

from ...techniques import Technique, techniques
from ..workload import Row


def declared_rows() -> dict[str, list[Row]]:
    """By suite, the row of each technique that declares one (`Technique.bench_row`), in order of phases."""
    found: dict[str, list[Row]] = {}
    for kind in sorted((techniques.get(name) for name in techniques), key=lambda kind: kind.phase):
        if kind.bench_row is not None:
            suite, title = kind.bench_row
            found.setdefault(suite, []).append(_row(kind, title))
    return found


def _row(kind: type[Technique], title: str) -> Row:
    """Offloading begins with opening the model, so that it is never in memory as a whole; the rest follows."""
    if kind.group == "offload":
        return Row(kind.name, title, offload=kind.name.removesuffix("_offload"))
    return Row(kind.name, title, enable=((kind.name, {}),), adds=kind.name)
