"""The profile as a file. What is measured is given here: how fast this machine is, is its own affair."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leandiffusion.core.cache import cache_folder
from leandiffusion.core.errors import ConfigError
from leandiffusion.measure.memory import rss
from leandiffusion.plan import measuring, profile, rates, reading
from leandiffusion.plan.floor import measure_floor
from leandiffusion.plan.points import lift, no_less, rate_at, sink
from leandiffusion.plan.profile import DeviceProfile, profile_of

from .profiles import PROFILE


class Bench:
    """Stands for measuring: counts what is asked for, and gives known numbers."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def measure(self, device: Any, dtypes: Any, identity: Any, known: DeviceProfile | None) -> DeviceProfile:
        self.asked.append(list(dtypes))
        base = (
            replace(PROFILE, taken_under=identity, products={}, reorder={}, fetch={}, load={})
            if known is None
            else known
        )
        for name in dtypes:
            base = replace(
                base,
                products={**base.products, name: PROFILE.products["float32"]},
                reorder={**base.reorder, name: PROFILE.reorder["float32"]},
                fetch={**base.fetch, name: 1e9},
                load={**base.load, name: 1e9},
            )
        return base


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bench]:
    made = Bench()
    monkeypatch.setenv("LEANDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(profile, "_measure", made.measure)
    forget()
    yield made
    forget()


def forget() -> None:
    """What this process knows, as if it were another one."""
    profile._remembered.cache_clear()


def test_it_reads_what_it_wrote() -> None:
    assert DeviceProfile.from_json(json.loads(json.dumps(PROFILE.to_json()))) == PROFILE


def test_it_is_measured_once_and_kept(bench: Bench, tmp_path: Path) -> None:
    first = profile_of("cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["profile-cpu.json"]
    assert profile_of("cpu") is first
    forget()
    assert profile_of("cpu") == first
    assert bench.asked == [["float32"]]


def test_a_dtype_that_is_missing_is_added(bench: Bench) -> None:
    profile_of("cpu")
    assert set(profile_of("cpu", ("float32", "bfloat16")).products) == {"float32", "bfloat16"}
    forget()
    assert set(profile_of("cpu").products) == {"float32", "bfloat16"}
    assert bench.asked == [["float32"], ["bfloat16"]]


@pytest.mark.parametrize(
    ("busy", "minutes", "again"), [(0.9, 11, True), (0.9, 9, False), (0.2, 11, False), (0.9, 60 * 24, True)]
)
def test_one_from_a_busy_machine_is_measured_again_later(
    bench: Bench, tmp_path: Path, busy: float, minutes: float, again: bool
) -> None:
    profile_of("cpu", ("float32", "bfloat16"))
    path = tmp_path / "profile-cpu.json"
    date = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes)
    values = json.loads(path.read_text()) | {"busy": busy, "date": date.isoformat()}
    path.write_text(json.dumps(values))
    forget()
    assert set(profile_of("cpu").products) == {"float32", "bfloat16"}
    assert [set(asked) for asked in bench.asked] == [{"float32", "bfloat16"}] * (1 + again)


def test_how_busy_it_was_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two seconds on two threads this process got one."""
    times = {"process_time": iter([0.0, 1.0]), "perf_counter": iter([0.0, 2.0])}
    for name, values in times.items():
        monkeypatch.setattr(rates.time, name, lambda values=values: next(values))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    share = rates._Share()
    with share.count():
        pass
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert share.missed == 0.75


def test_anew_measures_again_and_replaces(bench: Bench, tmp_path: Path) -> None:
    profile_of("cpu")
    profile_of("cpu", anew=True)
    profile_of("cpu", anew=True)
    assert bench.asked == [["float32"]] * 3


@pytest.mark.parametrize("fact", profile.IDENTITY)
def test_one_taken_under_something_else_is_stale(bench: Bench, tmp_path: Path, fact: str) -> None:
    profile_of("cpu")
    path = tmp_path / "profile-cpu.json"
    values = json.loads(path.read_text())
    values["taken_under"][fact] += "0"
    path.write_text(json.dumps(values))
    forget()
    assert profile_of("cpu").taken_under[fact] + "0" == values["taken_under"][fact]
    assert len(bench.asked) == 2


def test_other_threads_are_another_profile(bench: Bench) -> None:
    before = torch.get_num_threads()
    profile_of("cpu")
    torch.set_num_threads(before + 1)
    try:
        assert profile_of("cpu").taken_under["threads"] == str(before + 1)
    finally:
        torch.set_num_threads(before)
    assert len(bench.asked) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace("1000000000.0", "-1.0"),
        lambda text: text.replace("1000000000.0", '"fast"'),
        lambda text: text.replace('"conv"', '"cnov"'),
        lambda text: text.replace("2026-01-01", "long ago"),
    ],
)
def test_a_damaged_file_is_measured_anew(bench: Bench, tmp_path: Path, damage: Any) -> None:
    profile_of("cpu")
    path = tmp_path / "profile-cpu.json"
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    forget()
    assert profile_of("cpu").products["float32"] == PROFILE.products["float32"]
    assert len(bench.asked) == 2
    assert path.read_text() == whole


def test_a_folder_that_cannot_be_written_to_is_told_once(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEANDIFFUSION_CACHE", str(tmp_path / "file" / "folder"))
    with pytest.warns(UserWarning, match=r"cannot be written to .*LEANDIFFUSION_CACHE"):
        profile_of("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profile_of("cpu")
    assert len(bench.asked) == 1


def test_a_full_disk_leaves_nothing_behind(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leandiffusion.core.config.flush", full)
    with pytest.warns(UserWarning, match="No space left"):
        profile_of("cpu")
    assert not list(tmp_path.iterdir())


def test_devices_whose_time_cannot_be_told_are_refused() -> None:
    with pytest.raises(ConfigError, match="'cpu' or 'cuda'"):
        profile_of("meta")


def test_the_folder_is_the_users_unless_the_environment_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANDIFFUSION_CACHE", os.path.join("~", "elsewhere"))
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("LEANDIFFUSION_CACHE")
    assert cache_folder().name == "leandiffusion" or cache_folder().parent.name == "leandiffusion"


def test_rates_are_lifted_to_what_their_neighbours_prove() -> None:
    """At 8 operations per byte 8e9 were reached, that is 1e9 bytes/s: so at 2 no less than 2e9. What was done at 8 can
    be done at 64."""
    assert lift([(2.0, 1e9), (8.0, 8e9), (64.0, 5e9)]) == ((2.0, 2e9), (8.0, 8e9), (64.0, 8e9))
    assert lift([(8.0, 8e9), (2.0, 4e9)]) == ((2.0, 4e9), (8.0, 8e9))
    assert sink([(1.0, 2e9), (4.0, 3e9), (9.0, 1e9)]) == ((1.0, 3e9), (4.0, 3e9), (9.0, 1e9))


def test_where_memory_is_kept_nothing_is_slower_than_where_it_is_given_back() -> None:
    assert no_less(((1.0, 9e9), (2.0, 3e9)), ((1.0, 8e9), (2.0, 5e9))) == ((1.0, 9e9), (2.0, 5e9))


def test_between_points_rates_follow_a_line_in_logarithms() -> None:
    points = ((1.0, 1e9), (100.0, 1e11))
    assert rate_at(points, 10.0) == pytest.approx(1e10)
    assert rate_at(points, 0.1) == 1e9
    assert rate_at(points, 1e4) == 1e11


def test_measuring_gives_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a tiny size, by a clock that tells a second for everything."""
    monkeypatch.setattr(rates, "POOL_BYTES", 4 << 20)
    monkeypatch.setattr(reading, "FILE_BYTES", 1 << 20)
    monkeypatch.setattr(reading, "READ_BYTES", 36 << 10)
    monkeypatch.setattr(rates, "measure_load", lambda file, dtype: 7.0)
    monkeypatch.setattr(rates, "CHANNELS", 32)
    monkeypatch.setattr(rates, "TOKENS", {"host": (1, 8)})
    monkeypatch.setattr(rates, "MAPS", {"host": ((32, 2), (32, 4))})
    monkeypatch.setattr(rates, "REORDERED", (16, 32))
    monkeypatch.setattr(rates, "ATTENDED", ((8, 8), (16, 16)))
    monkeypatch.setattr(rates, "MEBIBYTES", (1, 2))
    monkeypatch.setattr(rates, "least_seconds", lambda run, device, seconds: run() is None or 1.0)
    cpu, visits = torch.device("cpu"), [0]

    def step() -> None:
        visits[0] += 1

    measured = rates.measure_dtype(cpu, torch.float32, step)
    (one, _), eight = measured.products["matmul"]
    assert one == 2 * 32 * 32 / (4 * (2 * 32 + 32 * 32))  # operations of one row, per byte of rows and weights
    assert eight == (8 * 2 * 32 * 32 / (4 * (16 * 32 + 32 * 32)), 16384.0)
    assert [len(measured.products[kind]) for kind in ("matmul", "conv", "attention")] == [2, 2, 2]
    assert measured.fetch == pytest.approx((96 * 96 * 4 + 32 * 32 * 9 * 4) / 2)
    assert measured.load == 7.0
    assert [size for size, _ in rates.measure_moves(cpu, step, fresh=True)] == [12 * 87381, 12 * 174762]
    rates.measure_moves(cpu, step, fresh=False)
    assert rates.measure_overhead(cpu, step) == 1e-3
    assert visits[0] == rates.steps_of(cpu, 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_whole_networks_are_read_by_all_threads_while_the_clock_runs(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of the processor on which a read takes five seconds in the first of four rounds, where the system has
    to find the memory, and one in others: two on average, which threads share."""
    monkeypatch.setattr(reading, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(reading, "FILE_BYTES", 4 << 20)
    monkeypatch.setattr(reading, "WHOLE_BYTES", 6 << 20)
    monkeypatch.setattr(reading, "threads_beside", lambda: threads)
    seconds, starts, own = [0.0], list[int](), reading.OpenFile.read

    def read(file: Any, entry: Any, target: Any) -> None:
        own(file, entry, target)
        starts.append(entry.start >> 20)
        seconds[0] += 5 if len(starts) <= 6 else 1

    monkeypatch.setattr(reading.OpenFile, "read", read)
    monkeypatch.setattr(reading.time, "process_time", lambda: seconds[0])
    monkeypatch.setattr(reading, "compute_beside", lambda works: [work() for work in works])
    with reading.checkpoint() as file:
        assert reading.measure_load(file, torch.bfloat16) == threads * (1 << 19)
    assert starts[:6] == [0, 1, 2, 3, 0, 1]


def test_one_that_does_not_tell_how_it_was_measured_is_stale_and_can_be_read(bench: Bench, tmp_path: Path) -> None:
    """As those in records of predictions, and on the disks of users, from before there was a number."""
    profile_of("cpu")
    path = tmp_path / "profile-cpu.json"
    values = json.loads(path.read_text())
    del values["taken_under"]["method"]
    path.write_text(json.dumps(values))
    assert DeviceProfile.from_json(values).products == PROFILE.products
    forget()
    assert profile_of("cpu").taken_under["method"] == profile.METHOD
    assert len(bench.asked) == 2


def _without_folder(**_: Any) -> Any:
    raise FileNotFoundError(2, "No usable temporary directory found")


class _FullFolder(tempfile.TemporaryDirectory[str]):
    """A file called 'weights' has no room in it."""

    def __enter__(self) -> str:
        folder = super().__enter__()
        os.symlink("/dev/full", os.path.join(folder, "weights"))
        return folder


full_disks = pytest.mark.parametrize("folder", [_without_folder, _FullFolder])


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
@full_disks
def test_without_room_for_temporary_files_the_checkpoint_is_in_memory(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FILE_BYTES", 1 << 20)
    monkeypatch.setattr(reading.tempfile, "TemporaryDirectory", folder)
    before = set(os.listdir("/proc/self/fd"))
    with reading.checkpoint() as file:
        target = torch.zeros(64, 64)
        reading._read(file, target, (1 << 20) - target.nbytes)
        assert torch.allclose(target, torch.full((64, 64), 0.0115), rtol=0.01)
    assert set(os.listdir("/proc/self/fd")) <= before


@full_disks
def test_without_room_anywhere_typical_figures_are_taken_and_told_once(
    folder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LEANDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(reading.tempfile, "TemporaryDirectory", folder)
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(profile, "_measure", lambda device, dtypes, *_: rates.measure_dtype(device, torch.float32, int))
    forget()
    with pytest.warns(UserWarning, match=r"cannot be measured \(.*\), which takes a temporary file"):
        typical = profile_of("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert profile_of("cpu") is typical
    forget()
    assert list(tmp_path.iterdir()) == []  # it is measured when there is room


def test_a_cpu_is_measured_by_another_process() -> None:
    """Here one that has no dtype left to measure, so that it tells what it was told, and when."""
    measured = measuring.measure(torch.device("cpu"), [], PROFILE.taken_under, PROFILE)
    assert replace(measured, date=PROFILE.date) == DeviceProfile.from_json(json.loads(json.dumps(PROFILE.to_json())))
    assert measured.date > "2026"


@pytest.mark.parametrize("answer", [OSError(1, "not permitted"), "no JSON"])
def test_where_no_other_process_tells_it_is_measured_here(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(*_: Any, **__: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    def measure_dtype(device: torch.device, dtype: torch.dtype, step: rates.Step) -> rates.Measured:
        asked.append(str(dtype))
        if dtype == torch.float16:
            raise RuntimeError("not implemented for 'Half'")
        return rates.Measured({"matmul": ((1.0, 1e9),)}, (), 2e9, 1e9, 0.5)

    monkeypatch.setattr(measuring.subprocess, "run", run)
    monkeypatch.setattr(measuring, "measure_dtype", measure_dtype)
    measured = measuring.measure(torch.device("cpu"), ["bfloat16", "float16"], PROFILE.taken_under, PROFILE)
    assert asked == ["torch.bfloat16", "torch.float16"]
    assert measured.fetch == {**PROFILE.fetch, "bfloat16": 2e9}
    assert measured.load == {**PROFILE.load, "bfloat16": 1e9}
    assert measured.busy == max(PROFILE.busy, 0.5)


def test_where_the_system_ends_the_other_process_typical_figures_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise subprocess.CalledProcessError(-9, "python")

    monkeypatch.setenv("LEANDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(measuring.subprocess, "run", killed)
    monkeypatch.setattr(measuring, "measure_dtype", None)
    forget()
    with pytest.warns(UserWarning, match="too little to measure"):
        told = profile_of("cpu")
    forget()
    assert set(told.products) == {"float32"}
    assert list(tmp_path.iterdir()) == []


def test_the_floor_is_a_whole_process() -> None:
    """torch alone takes over 100 MB; nothing of ours takes a gigabyte."""
    floor, computing = measure_floor(torch.device("cpu"))
    assert 100e6 < floor < 1e9
    assert 1e6 < computing < 0.5 * floor


def test_where_memory_is_short_no_other_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leandiffusion.plan.floor.available_memory", lambda: 200 << 20)
    monkeypatch.setattr("leandiffusion.plan.floor.subprocess.run", None)
    computed = []
    conv = torch.nn.functional.conv2d
    monkeypatch.setattr("torch.nn.functional.conv2d", lambda *args, **how: computed.append(1) or conv(*args, **how))
    floor, computing = measure_floor(torch.device("cpu"))
    assert floor == pytest.approx(rss(), rel=0.15)  # computing took up to 20 MB that went back since, of 300
    assert computed  # so that what computing brings is counted
    assert 0 <= computing < 0.5 * floor


def test_where_memory_is_too_short_for_measuring_typical_figures_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LEANDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr("leandiffusion.plan.typical.available_memory", lambda: 300 << 20)
    monkeypatch.setattr("leandiffusion.plan.floor.available_memory", lambda: 300 << 20)
    monkeypatch.setattr(profile, "_measure", None)
    profile._remembered.cache_clear()
    with pytest.warns(UserWarning, match=r"300 MiB of memory are left, too little to measure"):
        told = profile_of("cpu", ("float32", "bfloat16"))
    profile._remembered.cache_clear()
    assert set(told.products) == {"float32", "bfloat16"}
    assert told.floor > 100e6
    assert told.computing == 0  # it is in the floor: this process has computed
    assert list(tmp_path.iterdir()) == []  # it is measured when there is room
    assert rate_at(told.moves["kept"], 1e8) > 0
