"""The gate: what counts as worse, what as noise, and what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import StringIO

import pytest
from rich.console import Console

from leandiffusion.bench.record import Absent, Failure, Measurement, Records
from leandiffusion.bench.report.compare import MEASURED, OWN_PEAK, Change, compare, parse_share, table
from leandiffusion.core.errors import ConfigError

Make = Callable[..., Records]


@pytest.fixture
def run(records_of: Make, measure: Callable[..., Measurement]) -> Make:
    """Records of 'plain', 4 s per step, and of 'traced' with these steps, decoding and peaks by round."""

    def make(
        steps: Sequence[float] = (2.0, 2.0, 2.0), decode: float = 1.0, peak: int = 500, own: int = 1000,
        mood: float = 1.0, **load: object,
    ) -> Records:  # fmt: skip
        outcomes = []
        for number, step in enumerate(steps):
            plain, traced = {"step": 4.0 * mood, "decode": 2.0 * mood}, {"step": step * mood, "decode": decode * mood}
            outcomes.append(measure("plain", number, seconds=plain, peaks={"decode": own}))
            outcomes.append(measure("traced", number, seconds=traced, peaks={"decode": peak}))
        return records_of(*outcomes, **load)

    return make


def by_figure(changes: list[Change], row: str = "traced") -> dict[str, Change]:
    return {change.figure: change for change in changes if change.row == row}


def test_nothing_changed(run: Make) -> None:
    changes = compare(run(), run(), 0.0)
    assert [(c.row, c.figure) for c in changes] == [
        ("plain", OWN_PEAK), ("traced", "step"), ("traced", "decode"), ("traced", "peak"),
    ]  # fmt: skip
    assert not any(change.worse for change in changes)
    assert {change.change for change in changes} == {0.0}


def test_a_slower_machine_is_no_regression(run: Make) -> None:
    assert not any(change.worse for change in compare(run(), run(mood=3.0), 0.01))


@pytest.mark.parametrize(("step", "worse"), [(2.1, False), (2.19, False), (2.21, True), (1.0, False)])
def test_worse_by_more_than_the_limit(step: float, worse: bool, run: Make) -> None:
    change = by_figure(compare(run(), run([step] * 3), 0.10))["step"]
    assert change.worse is worse
    assert change.change == pytest.approx(step / 2 - 1)  # of two rounded quotients


@pytest.mark.parametrize(("steps", "worse"), [((2.0, 2.6, 2.8), False), ((2.3, 2.6, 2.8), True)])
def test_spreads_that_overlap_are_noise(steps: tuple[float, ...], worse: bool, run: Make) -> None:
    """Before: 1.9 to 2.2 s; the median after is 24% up either way."""
    assert by_figure(compare(run([1.9, 2.1, 2.2]), run(steps), 0.10))["step"].worse is worse


def test_decoding_and_memory_count_too(run: Make) -> None:
    changes = by_figure(compare(run(), run(decode=1.5, peak=600), 0.10))
    assert {figure for figure, change in changes.items() if change.worse} == {"decode", "peak"}


def test_of_the_base_only_memory_counts(run: Make) -> None:
    changes = compare(run(), run(own=1200, peak=600), 0.10)
    assert [(change.row, change.figure) for change in changes if change.worse] == [("plain", OWN_PEAK)]
    assert set(by_figure(changes, "plain")) == {OWN_PEAK}


@pytest.mark.parametrize("gone", [Absent("traced", "no compiler"), Failure("traced", 0, "no compiler"), None])
def test_a_row_that_is_gone_is_worse(
    gone: Absent | Failure | None, run: Make, records_of: Make, measure: Callable[..., Measurement]
) -> None:
    new = records_of(measure("plain"), *([gone] if gone else []))
    change = by_figure(compare(run(), new, 0.10))[MEASURED]
    assert change.worse
    assert math.isinf(change.change)
    assert ("no compiler" if gone else "is not among the rows") in change.reason


def test_a_row_that_an_interrupted_run_did_not_reach(run: Make) -> None:
    new = run()
    new.outcomes = [outcome for outcome in new.outcomes if outcome.row == "plain"]
    assert by_figure(compare(run(), new, 0.10))[MEASURED].reason == "was not reached"


def test_a_stage_that_is_gone_is_worse(run: Make, measure: Callable[..., Measurement]) -> None:
    new = run()
    new.outcomes = [
        o if o.row == "plain" else measure("traced", i, seconds={"step": 2.0}) for i, o in enumerate(new.outcomes[:2])
    ]
    new.outcomes[1] = measure("traced", 0, seconds={"step": 2.0}, peaks={"decode": 500})
    change = by_figure(compare(run(), new, 0.10))["decode"]
    assert change.worse
    assert change.new is None


def test_new_rows_and_rows_that_never_ran_are_not_compared(
    run: Make, records_of: Make, measure: Callable[..., Measurement]
) -> None:
    old = records_of(measure("plain"), Absent("traced", "no compiler"))
    assert {change.row for change in compare(old, run(), 0.10)} == {"plain"}


@pytest.mark.parametrize(
    "load",
    [{"model": "demo"}, {"size": 256}, {"batch": 2}, {"half": "float16"}, {"device": "cuda"}, {"suite": "memory"}],
)
def test_other_work_is_refused(load: dict[str, object], run: Make) -> None:
    name = next(iter(load))
    with pytest.raises(ConfigError, match=f"differ in {name} .* and {load[name]}: measure the same work"):
        compare(run(), run(**load), 0.10)


def test_other_steps_and_rounds_are_not(run: Make) -> None:
    assert not any(change.worse for change in compare(run(), run(steps=[2.0], repeat=1, seed=4), 0.10))


def test_another_base_is_refused(run: Make, records_of: Make, measure: Callable[..., Measurement]) -> None:
    with pytest.raises(ConfigError, match="first measured rows differ: plain and traced"):
        compare(run(), records_of(measure("traced")), 0.10)


def test_a_run_that_measured_nothing_is_refused(run: Make, records_of: Make) -> None:
    with pytest.raises(ConfigError, match="the new run holds no measured row"):
        compare(run(), records_of(), 0.10)
    with pytest.raises(ConfigError, match="the old run holds no measured row"):
        compare(records_of(), run(), 0.10)


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), ("0.1", 0.1), (" 2.5 % ", 0.025), ("0", 0), ("150%", 1.5), (".5", 0.5), ("1", 1)]
)
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)  # a division by 100


@pytest.mark.parametrize("text", ["-5%", "-0.1", "10", "", "%", "ten", "nan", "inf", "1e-1", "10%%", "1,5%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a share: write it as '10%' or '0\.1'"):
        parse_share(text)


def test_the_table_says_what_is_worse(run: Make, records_of: Make, measure: Callable[..., Measurement]) -> None:
    changes = compare(run(), run([3.0] * 3), 0.10)
    changes += compare(run(), records_of(measure("plain"), Absent("traced", "no [compiler]")), 0.10)
    console = Console(file=StringIO(), width=120)
    console.print(table(changes))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+50.0%" in text
    assert "worse: no [compiler]" in text
    assert "0.977 KiB" in text  # 1000 bytes
