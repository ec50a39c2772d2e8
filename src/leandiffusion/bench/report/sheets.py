"""Tables as headings, cells and legend, before they are drawn for a terminal or a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain

from ...core.units import format_bytes, format_seconds
from ...device.host import is_host
from ..record import Measurement, Records
from .describe import headline, suite_of, title_of
from .statistics import Figure, Spread, figure_of, ratio_of, speedup_of, spread_of

STEPS = 50
LONG_PREPARATION = 0.5
"""Seconds; preparing is shown where some row takes longer."""

STEP, DECODE, PEAK = figure_of("step"), figure_of("decode"), figure_of("peak")
NOTHING = "–"
PEAK_OF = "at "
STAGES = ("load", "text", "denoise", "decode")

Cell = Callable[[str], str]


@dataclass(frozen=True)
class Sheet:
    """`columns` are headings, the first of them of what each row is; `legend` says by heading what they mean."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    legend: dict[str, str] = field(default_factory=dict)

    def only(self, columns: tuple[str, ...]) -> Sheet:
        """The sheet with its first column and these, as far as it has them."""
        kept = [i for i, heading in enumerate(self.columns) if i == 0 or heading in columns]
        headings = [self.columns[i] for i in kept]
        legend = {heading: line for heading, line in self.legend.items() if heading in headings}
        return Sheet(self.title, headings, [[row[i] for i in kept] for row in self.rows], legend)


def main_sheet(records: Records) -> Sheet:
    """Each measured row with the figures that its suite shows. Columns in which no row has a value are left out."""
    suite = suite_of(records)
    if suite.own_sizes:
        return size_sheet(records)
    names, known = [row for row in records.run.rows if records.measured(row)], _columns(records)
    headings = ("row", *chain.from_iterable(suite.columns))
    cells = {heading: [known[heading](row) for row in names] for heading in headings}
    cells = {heading: column for heading, column in cells.items() if heading == "row" or any(column)}
    rows = [[text or NOTHING for text in row] for row in zip(*cells.values(), strict=True)]
    legend = {heading: line for heading, line in {**_legend(records), **suite.legend}.items() if heading in cells}
    return Sheet(f"{suite.title}: {headline(records)}", list(cells), rows, legend)


def size_sheet(records: Records) -> Sheet:
    """Rate and memory of the rows before and after, by size of the picture."""
    suite = suite_of(records)
    headings = list(chain.from_iterable(suite.columns))
    rows = []
    for size, (before, after) in sizes(records).items():
        known = _pair(records, before, after)
        cells = [known[heading] for heading in headings]
        if any(cells):
            rows.append([text or NOTHING for text in (f"{size} px", *cells)])
    legend = {
        "it/s before": "it/s: denoising steps per second, median of the rounds; × faster and × peak: within each "
        "round, median (least–greatest).",
        **suite.legend,
    }
    return Sheet(f"{suite.title}: {headline(records)}", ["size", *headings], rows, legend)


def sizes(records: Records) -> dict[int, tuple[str, str]]:
    """Names of the rows before and after, by size in pixels."""
    found = {int(match[1]) for row in records.run.rows if (match := re.fullmatch(r"(\d+)_(before|after)", row))}
    return {size: (f"{size}_before", f"{size}_after") for size in sorted(found)}


def share_of_limit(records: Records, row: str) -> Spread | None:
    """Operations per second of a step, as a share of the ceiling measured in that round at the row's dtype."""
    count = records.run.flops.get("step")
    if not count or suite_of(records).own_sizes:
        return None

    def share(m: Measurement) -> float | None:
        most = max(m.ceiling.get(m.dtype, {}).values(), default=0.0)
        return count / m.seconds["step"] / most if most and m.seconds.get("step") else None

    return spread_of(records, row, share)


def whole_picture(m: Measurement) -> float | None:
    """Seconds of text, 50 steps and decoding; None where one of them was not run."""
    parts = [m.seconds.get(stage) for stage in ("text", "step", "decode")]
    if None in parts:
        return None
    text, step, decode = (part or 0.0 for part in parts)
    return text + STEPS * step + decode


def _columns(records: Records) -> dict[str, Cell]:
    """Every column that a suite can name, with what stands in it for a row."""
    prepare = figure_of("prepare")
    long = any((prepare(m) or 0) > LONG_PREPARATION for row in records.run.rows for m in records.measured(row))
    published = suite_of(records).published

    def seconds(figure: Figure) -> Cell:
        return lambda row: _text(spread_of(records, row, figure), format_seconds)

    return {
        "row": lambda row: title_of(records, row),
        "step": lambda row: s.text(format_seconds) if (s := spread_of(records, row, STEP)) else "",
        "it/s": lambda row: _text(spread_of(records, row, STEP), rate),
        "× faster": lambda row: str(speedup_of(records, row, STEP) or ""),
        "text": seconds(figure_of("text")),
        "decode": seconds(DECODE),
        "prepare": lambda row: format_seconds(s.high) if long and (s := spread_of(records, row, prepare)) else "",
        "peak": lambda row: _text(spread_of(records, row, PEAK), format_bytes),
        "× peak": lambda row: _text(ratio_of(records, row, PEAK), "{:.2f}".format),
        "% of limit": lambda row: _text(share_of_limit(records, row), "{:.0%}".format),
        "PSNR / SSIM": lambda row: _quality(records.measured(row)),
        **{f"{PEAK_OF}{stage}": _peak_of(records, stage) for stage in STAGES},
        f"{STEPS} steps": seconds(whole_picture),
        "× whole": lambda row: str(speedup_of(records, row, whole_picture) or ""),
        "published": lambda row: _published(published, row),
    }


def _legend(records: Records) -> dict[str, str]:
    base = title_of(records, records.base) if records.base else NOTHING
    return {
        "step": "step: one denoising step, a conditional and an unconditional UNet call; it/s: steps per second; text, "
        "decode: encoding the prompt, decoding the picture. Medians of the rounds; a step's with its range.",
        "× faster": f"× faster: step time of '{base}' over the row's, within each round: median (least–greatest).",
        "prepare": "prepare: how much longer the first call takes than a later one: reading weights in, compiling, "
        "tracing. The longest of the rounds, since later rounds find compiled code in torch's cache.",
        "peak": "peak: most memory at any time, loading included, "
        + ("of the process" if is_host(str(records.run.workload.get("device"))) else "reserved on the GPU")
        + f"; × peak: over that of '{base}'.",
        f"{PEAK_OF}{STAGES[0]}": "at load, text, denoise, decode: the peak of each stage alone, what is held then "
        "included; load: opening the model and switching techniques on.",
        "% of limit": "% of limit: operations per second in a step over the most that matrix products or convolutions "
        "reached on this machine in that round, in the dtype of the row's weights. Above 100% where products are "
        "computed in a faster dtype than that.",
        "PSNR / SSIM": "PSNR / SSIM: the picture against the plain float32 one; the worst of the rounds.",
        f"{STEPS} steps": f"{STEPS} steps: text + {STEPS} × step + decode, computed. × whole: that of '{base}' over "
        "the row's.",
    }


def _peak_of(records: Records, stage: str) -> Cell:
    return lambda row: _text(spread_of(records, row, lambda m: (m.reserved or m.peaks).get(stage)), format_bytes)


def _pair(records: Records, before: str, after: str) -> dict[str, str]:
    """What stands in the columns of a suite of sizes."""

    def text(row: str, figure: Figure, form: Callable[[float], str]) -> str:
        return _text(spread_of(records, row, figure), form)

    return {
        "it/s before": text(before, STEP, rate),
        "it/s after": text(after, STEP, rate),
        "× faster": str(speedup_of(records, after, STEP, before) or ""),
        "peak before": text(before, PEAK, format_bytes),
        "peak after": text(after, PEAK, format_bytes),
        "× peak": str(ratio_of(records, after, PEAK, before) or ""),
    }


def _published(seconds: Mapping[str, float], row: str) -> str:
    """Speed-up and seconds as published: '×2.63 (3.61 s)'; the first row is what others are compared with."""
    if row not in seconds:
        return ""
    return f"×{next(iter(seconds.values())) / seconds[row]:.2f} ({seconds[row]:.2f} s)"


def _quality(measured: list[Measurement]) -> str:
    """The worst of the rounds: '38.1 dB / 0.9871', or 'identical'."""
    found = [m.quality for m in measured if m.quality]
    ssim = min((value for q in found if (value := q.get("ssim")) is not None), default=None)
    psnr = min((value for q in found if (value := q.get("psnr")) is not None), default=None)
    if psnr is None and ssim is not None and ssim > 0.9999 and all("psnr" in q for q in found):
        return "identical"
    parts = [NOTHING if psnr is None else f"{psnr:.1f} dB", NOTHING if ssim is None else f"{ssim:.4f}"]
    return " / ".join(parts) if parts != [NOTHING] * 2 else ""


def rate(seconds: float) -> str:
    """Seconds per step -> steps per second, three digits."""
    value = 1 / seconds if seconds else 0.0
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _text(spread: Spread | None, form: Callable[[float], str]) -> str:
    return "" if spread is None else form(spread.median)
