"""What a suite declares, and the settings that rows of several suites share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..workload import Row, Workload

Enabled = tuple[tuple[str, Mapping[str, Any]], ...]

SCORES: Enabled = (("attention_backend", {"backend": "plain"}),)
"""Attention that holds all its scores in memory, as every pipeline's did when the tables were published."""

EFFICIENT: Enabled = (("attention_backend", {"backend": "memory_efficient"}),)

TIME = ("step", "it/s", "× faster", "text", "decode", "prepare")
COST = ("peak", "× peak", "% of limit", "PSNR / SSIM")
"""Columns that every suite of whole pictures shows."""


def only_declared(workload: Workload, declared: Sequence[Row]) -> list[Row]:
    """The rows that techniques declare, and no others."""
    return list(declared)


@dataclass(frozen=True)
class Suite:
    """What `leandiffusion bench NAME` measures and shows.

    `title` heads its page, `about` is the command's help, `example` are names of rows for the help. `rows(workload,
    declared)` gives its rows in order: those that combine techniques, and among them `declared`, the rows of single
    techniques that name this suite (`Technique.bench_row`). `columns` are headings known to `report.sheets`; those of
    one group stand together in a terminal, which is narrower than a page. `legend` explains columns where that is
    special to this suite. `plots` are names of `report.plots.PLOTS`.

    `own_sizes`: rows bring sizes of their own, in pairs called SIZE_before and SIZE_after. Such a suite has no `--size`
    and no peers. `published`: seconds of a whole picture by row as published elsewhere, measured on `published_on`; the
    first is what the others are compared with.
    """

    name: str
    title: str
    about: str = ""
    example: str = ""
    rows: Callable[[Workload, Sequence[Row]], list[Row]] = only_declared
    columns: tuple[tuple[str, ...], ...] = (TIME, COST)
    legend: Mapping[str, str] = field(default_factory=dict)
    plots: tuple[str, ...] = ("tradeoff", "speedup", "timeline")
    own_sizes: bool = False
    published: Mapping[str, float] = field(default_factory=dict)
    published_on: str = ""
