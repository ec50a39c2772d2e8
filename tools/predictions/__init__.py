"""Predicted against measured: what the records of `benchmarks/plan.py` say of the planner's figures."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leandiffusion.core.errors import ConfigError
from leandiffusion.core.units import format_bytes, format_seconds

STEPS = 20
"""Of the call whose seconds are compared: its texts and its decode are a small part, as they are for users."""

APART = 1.15
"""Times as long from which it matters which of two combinations is said to be faster."""

STAGES = ("encode", "denoise", "decode")


@dataclass(frozen=True)
class Figures:
    """Peak in bytes by stage, and seconds of 'encode', of one 'step' and of 'decode'."""

    peaks: Mapping[str, float]
    seconds: Mapping[str, float]

    @property
    def peak(self) -> float:
        """Most bytes of any stage."""
        return max(self.peaks.values())

    @property
    def call(self) -> float:
        """Seconds of a call of STEPS steps."""
        return self.seconds["encode"] + STEPS * self.seconds["step"] + self.seconds["decode"]


@dataclass(frozen=True)
class Combination:
    """What was drawn, with its predicted and its measured figures. `about` is what was switched on, or off."""

    model: str
    size: int
    batch: int
    about: str
    predicted: Figures
    measured: Figures

    @property
    def call(self) -> tuple[str, int, int]:
        """Model, size and batch: among combinations of one call the planner chooses."""
        return self.model, self.size, self.batch

    def __str__(self) -> str:
        return f"{self.model}, {self.size} px, batch {self.batch}, {self.about}"


def read_predictions(path: Path) -> tuple[dict[str, Any], list[Combination]]:
    """The run's description, and the combinations that were measured. ConfigError for other files."""
    run: dict[str, Any] = {}
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            if values["kind"] == "run":
                run = values
            elif values["kind"] == "combination":
                figures = (
                    Figures(values[name]["peaks"], values[name]["seconds"]) for name in ("predicted", "measured")
                )
                found.append(Combination(*(values[key] for key in ("model", "size", "batch", "about")), *figures))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no record of benchmarks/plan.py ({error!r}).") from error
    return run, found


def ranked(
    combinations: Iterable[Combination], *, alike: bool = False
) -> tuple[list[tuple[Combination, Combination]], int]:
    """Pairs whose measured calls differ by more than APART and are predicted the other way round, the slower one first;
    and how many pairs differ so much. `alike`: only pairs of one model, size and batch."""
    wrong, total = [], 0
    for one, other in itertools.combinations(combinations, 2):
        slow, fast = (one, other) if one.measured.call >= other.measured.call else (other, one)
        if slow.measured.call <= APART * fast.measured.call or (alike and one.call != other.call):
            continue
        total += 1
        if slow.predicted.call <= fast.predicted.call:
            wrong.append((slow, fast))
    return wrong, total


def headline(run: Mapping[str, Any]) -> str:
    """Where and when the combinations were drawn: 'AMD EPYC, 2 threads, torch 2.13, float32, 2026-11-29'."""
    machine = run["machine"]
    count, torch = machine["threads"]["intra-op"], run["versions"]["torch"]
    threads = "1 thread" if count == 1 else f"{count} threads"
    return f"{machine['cpu']['model']}, {threads}, torch {torch}, float32, {run['started'][:10]}"


WHAT: dict[str, Callable[[Figures], float]] = {
    "peak memory of a call": lambda figures: figures.peak,
    "peak while encoding": lambda figures: figures.peaks["encode"],
    "peak while denoising": lambda figures: figures.peaks["denoise"],
    "peak while decoding": lambda figures: figures.peaks["decode"],
    "seconds of a step": lambda figures: figures.seconds["step"],
    "seconds of a decode": lambda figures: figures.seconds["decode"],
    f"seconds of a call of {STEPS} steps": lambda figures: figures.call,
}


def errors(combinations: Sequence[Combination], figure: Callable[[Figures], float]) -> list[tuple[float, Combination]]:
    """Predicted over measured less one, from the lowest to the highest."""
    found = [(figure(each.predicted) / figure(each.measured) - 1, each) for each in combinations]
    return sorted(found, key=lambda pair: pair[0])


def markdown(combinations: Sequence[Combination]) -> str:
    """Tables: how far off, which pairs are ranked wrongly, and every combination."""
    return "\n".join([*_distribution(combinations), "", *_ranking(combinations), "", *_table(combinations)]) + "\n"


def _distribution(combinations: Sequence[Combination]) -> Iterable[str]:
    yield f"{len(combinations)} combinations. Errors are predicted over measured, less one."
    yield ""
    yield "| | median | half of them within | 90% of them within | within 10% | lowest | highest |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for what, figure in WHAT.items():
        found = [error for error, _ in errors(combinations, figure)]
        sizes = sorted(map(abs, found))
        near, most = sum(size <= 0.1 for size in sizes), sizes[-(-9 * len(sizes) // 10) - 1]
        yield (
            f"| {what} | {statistics.median(found):+.1%} | {statistics.median(sizes):.1%} "
            f"| {most:.1%} | {near} of {len(sizes)} | {found[0]:+.1%} | {found[-1]:+.1%} |"
        )
    yield ""
    for what in ("peak memory of a call", f"seconds of a call of {STEPS} steps"):
        error, worst = max(errors(combinations, WHAT[what]), key=lambda pair: abs(pair[0]))
        yield f"- Worst {what}: {error:+.1%}, {worst}."


def _ranking(combinations: Sequence[Combination]) -> Iterable[str]:
    for alike, where in ((False, "all"), (True, "one model, size and batch")):
        wrong, total = ranked(combinations, alike=alike)
        right = f"{(total - len(wrong)) / total:.1%} ({total - len(wrong)} of {total})" if total else "there are none"
        yield f"- Pairs of {where} whose calls differ by over {APART - 1:.0%}, ranked rightly: {right}."
        for slow, fast in wrong[:10] if alike else ():
            times = slow.measured.call / fast.measured.call
            yield f"  - wrong: {slow} takes {times:.2f} times as long as {fast.about}"


def _table(combinations: Sequence[Combination]) -> Iterable[str]:
    figures = [f"{what}, predicted | measured | off by" for what in ("peak", "step", "decode")]
    yield f"| model | size | batch | on | {' | '.join(figures)} |"
    yield "| --- | ---: | ---: | --- | " + " | ".join(["---:"] * 9) + " |"
    for each in combinations:
        cells = [each.model, str(each.size), str(each.batch), each.about]
        pairs = [(each.predicted.peak, each.measured.peak, format_bytes)]
        pairs += [
            (each.predicted.seconds[name], each.measured.seconds[name], format_seconds) for name in ("step", "decode")
        ]
        for predicted, measured, text in pairs:
            cells += [text(predicted), text(measured), f"{predicted / measured - 1:+.0%}"]
        yield f"| {' | '.join(cells)} |"


def draw(combinations: Sequence[Combination], path: Path, title: str) -> None:
    """Write the plot as a PNG: peaks and seconds of every combination, predicted over measured. BackendUnavailable
    without matplotlib."""
    from leandiffusion.bench.report.plots import save_figure, style

    with style():
        from .plot import figure

        save_figure(figure(combinations, title), path)
