"""Records survive being written and read, cut off and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leandiffusion.bench.record import Absent, Failure, Measurement, Records, Writer, read_records
from leandiffusion.core.errors import ConfigError


def written(records: Records, path: Path, finish: bool = True) -> Path:
    with path.open("w", encoding="utf-8") as file:
        writer = Writer(file, records.run)
        for outcome in records.outcomes:
            writer.add(outcome)
        if finish:
            writer.finish()
    return path


@pytest.fixture
def path(published: Records, tmp_path: Path) -> Path:
    return written(published, tmp_path / "records.jsonl")


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> Path:
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())), encoding="utf-8")
    return path


def plain(records: Records) -> str:
    """As JSON, in which a tuple and a list are the same."""
    return json.dumps([vars(records.run), *map(vars, records.outcomes)])


def test_round_trip(published: Records, path: Path) -> None:
    read = read_records(path)
    assert plain(read) == plain(published)
    assert read.complete
    assert [type(a) for a in read.outcomes] == [type(b) for b in published.outcomes]


def test_each_line_is_on_disk_before_the_next_row(published: Records, tmp_path: Path) -> None:
    path = tmp_path / "open.jsonl"
    with path.open("w", encoding="utf-8") as file:
        writer = Writer(file, published.run)
        for count, outcome in enumerate(published.outcomes[:3], 1):
            writer.add(outcome)
            assert len(read_records(path).outcomes) == count


def test_without_an_end_the_run_was_interrupted(published: Records, tmp_path: Path) -> None:
    read = read_records(written(published, tmp_path / "x.jsonl", finish=False))
    assert not read.complete
    assert len(read.outcomes) == len(published.outcomes)


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_last_line_that_was_cut_off_is_left_out(cut: int, path: Path, published: Records) -> None:
    edit(path, lambda lines: [*lines[:-2], lines[-2][:-cut]])
    read = read_records(path)
    assert len(read.outcomes) == len(published.outcomes) - 1
    assert not read.complete


def test_a_cut_off_run_line_is_no_run(path: Path) -> None:
    edit(path, lambda lines: [lines[0][:-1]])
    with pytest.raises(ConfigError, match="line 1 is not a record"):
        read_records(path)


@pytest.mark.parametrize("broken", ["{", "[]", "3", "null", '"kind"', "{}", ""])
def test_a_broken_line_in_the_middle_is_named(broken: str, path: Path) -> None:
    edit(path, lambda lines: [lines[0], broken, *lines[1:]])
    with pytest.raises(ConfigError, match=r"records\.jsonl, line 2 is not a record"):
        read_records(path)


@pytest.mark.parametrize("value", [0, 2, "1", None])
def test_other_formats_are_refused(value: object, path: Path) -> None:
    edit(path, lambda lines: [json.dumps({**json.loads(lines[0]), "format": value}), *lines[1:]])
    with pytest.raises(ConfigError, match=r"line 1 does not begin .* in format 1: measure anew"):
        read_records(path)


def test_a_file_that_begins_with_an_outcome_is_refused(path: Path) -> None:
    edit(path, lambda lines: lines[1:])
    with pytest.raises(ConfigError, match="line 1 does not begin"):
        read_records(path)


@pytest.mark.parametrize("kind", ["run", "guess", 3])
def test_unknown_kinds_are_refused(kind: object, path: Path) -> None:
    edit(path, lambda lines: [lines[0], json.dumps({"kind": kind}), *lines[1:]])
    with pytest.raises(ConfigError, match=r"line 2 is of unknown kind .* measurement, absent, failure or end"):
        read_records(path)


@pytest.mark.parametrize(("kind", "missing"), [("absent", "reason"), ("failure", "error"), ("measurement", "steps")])
def test_missing_fields_are_named(kind: str, missing: str, path: Path) -> None:
    edit(path, lambda lines: [lines[0], json.dumps({"kind": kind, "row": "plain", "round": 0}), *lines[1:]])
    with pytest.raises(ConfigError, match=f"line 2 is not a record of kind '{kind}': .*'{missing}'"):
        read_records(path)


def test_fields_of_a_later_version_are_passed_over(path: Path, published: Records) -> None:
    edit(path, lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "mood": "good"}), *lines[2:]])
    assert plain(read_records(path)) == plain(published)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read"), (b"", "is empty"), (b"\xff\xfe\x00", "not UTF-8 text")]
)
def test_files_that_hold_nothing(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        read_records(path)


def test_infinity_is_not_written(published: Records, tmp_path: Path, measure: Callable[..., Measurement]) -> None:
    """JSON has no word for it, and other readers would stumble."""
    with (tmp_path / "x.jsonl").open("w", encoding="utf-8") as file, pytest.raises(ValueError, match="JSON"):
        Writer(file, published.run).add(measure("plain", quality={"psnr": float("inf")}))


def test_what_happened_to_a_row(published: Records, measure: Callable[..., Measurement]) -> None:
    assert published.base == "plain"
    assert len(published.measured("plain")) == 3
    assert published.trouble("plain") is None
    assert published.trouble("cudnn_autotune") == "this machine has no cuDNN"
    assert str(published.trouble("compiled")).startswith("failed: RuntimeError")


def test_the_base_is_the_first_row_that_was_measured(
    records_of: Callable[..., Records], measure: Callable[..., Measurement]
) -> None:
    records = records_of(Absent("plain", "no"), Failure("half_precision", 0, "no"), measure("traced"))
    assert records.base == "traced"
    assert records_of(Absent("plain", "no")).base is None


def test_the_peak_is_reserved_memory_on_cuda(measure: Callable[..., Measurement]) -> None:
    assert measure("plain", peaks={"load": 5, "decode": 7}).peak == 7
    assert measure("plain", peaks={"load": 5}, reserved={"load": 1, "denoise": 3}).peak == 3
    assert measure("plain", peaks={}).peak == 0
