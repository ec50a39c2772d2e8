"""Folders that are replaced at once: killed at every step, on full disks, by several processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leandiffusion.core import aside as names
from leandiffusion.core import replacing
from leandiffusion.core.aside import aside, has_dead_owner, is_aside, sweep
from leandiffusion.core.errors import MalformedFile, WeightsError
from leandiffusion.core.replacing import JOURNAL, Replacement, finish_saving

posix = pytest.mark.skipif(os.name != "posix", reason="forks and kills")

STEPS = ("replace", "link", "unlink", "mkdir", "rmdir", "fsync", "open")
"""What of `os` changes a disk or looks at it: where a process is killed, or finds the disk full."""


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def disk_without_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote, and flushing takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


FOREIGN = {"README.md": "mine", "unet/other.safetensors": "another variant", "extra/config.json": "another component"}
OLD = {"model_index.json": "old", "unet/a.safetensors": "old", "unet/b.safetensors": "old", "vae/config.json": "old"}
NEW = {
    "model_index.json": "new!",
    "unet/a.safetensors": "new!",
    "unet/c.safetensors": "new!",
    "vae/deep/x.json": "new!",
}
AFTER = {**NEW, "vae/config.json": "old"}


def stale(there: object, fresh: object) -> list[str]:
    return ["b.safetensors"] if "c.safetensors" in fresh else []  # type: ignore[operator]


def replace_all(folder: Path) -> None:
    with Replacement(folder, stale) as new:
        for name, text in NEW.items():
            part, _, rest = name.partition("/")
            write(new.place(part if rest else ""), {rest or part: text})


def in_child(work: object, at: int, action: object) -> int:
    """Run `work` in a forked child in which the step number `at` does `action` instead; what the child ends with."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        count = 0

        def counting(step: object) -> object:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal count
                count += 1
                if count == at:
                    action()  # type: ignore[operator]
                return step(*args, **kwargs)  # type: ignore[operator]

            return call

        for name in STEPS:
            setattr(os, name, counting(getattr(os, name)))
        work()  # type: ignore[operator]
        os._exit(0)
    except OSError:
        os._exit(3)
    finally:
        os._exit(4)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@posix
@pytest.mark.parametrize("action", [die, full], ids=["killed", "full disk"])
def test_cut_short_at_every_step(tmp_path: Path, action: object) -> None:
    ends: list[str] = []
    for at in range(1, 400):
        folder = tmp_path / str(at)
        write(folder, {**OLD, **FOREIGN})
        code = in_child(lambda folder=folder: replace_all(folder), at, action)
        assert code in (0, 3, -signal.SIGKILL)
        mixed = (folder / JOURNAL).exists()
        finish_saving(folder)
        found = {name: text for name, text in read(folder).items() if ".part/" not in name}
        assert found in ({**OLD, **FOREIGN}, {**AFTER, **FOREIGN}), (at, code)
        is_new = found["model_index.json"] == "new!"
        assert is_new or not mixed
        ends.append("new" if is_new else "old")
        replace_all(folder)  # takes away what the first left aside
        assert read(folder) == {**AFTER, **FOREIGN}
        assert not [path for path in folder.rglob("*") if is_aside(path.name)]
        if code == 0 and action is die:
            break
        if code == 0 and at > 110:
            break
    assert {*ends} == {"old", "new"}
    if action is die:
        assert ends == sorted(ends, reverse=True)  # once new, never old again


@posix
def test_finishing_is_cut_short_too(tmp_path: Path) -> None:
    for at in range(1, 200):
        folder = tmp_path / str(at)
        write(folder, {**OLD, **FOREIGN})

        def killed_in_swap(folder: Path = folder) -> None:
            replacing.finish_saving = lambda _: None if not (folder / JOURNAL).exists() else die()  # type: ignore[assignment]
            replace_all(folder)

        assert in_child(killed_in_swap, 0, die) == -signal.SIGKILL
        assert (folder / JOURNAL).exists()
        code = in_child(lambda folder=folder: finish_saving(folder), at, die)
        for part in ("unet", "vae", ""):  # by themselves first
            finish_saving(folder / part)
        assert read(folder) == {**AFTER, **FOREIGN}
        if code == 0:
            break
    assert 20 < at < 199


@posix
def test_a_first_save_that_is_cut_short(tmp_path: Path) -> None:
    for at in range(1, 200):
        folder = tmp_path / str(at) / "new"
        code = in_child(lambda folder=folder: replace_all(folder), at, die)
        finish_saving(folder)
        found = {name: text for name, text in read(folder).items() if ".part/" not in name}
        assert found in ({}, NEW)
        if code == 0:
            break
    assert found == NEW


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with pytest.raises(KeyboardInterrupt), Replacement(tmp_path, stale) as new:  # noqa: PT012
        write(new.place("unet"), {"a.safetensors": "new"})
        write(new.place("fresh"), {"a.safetensors": "new"})
        raise KeyboardInterrupt
    assert read(tmp_path) == OLD
    assert not (tmp_path / "fresh").exists()
    with pytest.raises(KeyboardInterrupt), Replacement(tmp_path / "a" / "b", stale) as new:
        raise KeyboardInterrupt
    assert not (tmp_path / "a").exists()


def test_an_error_while_names_are_given_is_told_and_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, OLD)
    original = os.replace

    def refusing(source: object, target: object) -> None:
        if Path(str(target)).name == "model_index.json":
            raise PermissionError(errno.EACCES, "Permission denied")
        original(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refusing)
        with pytest.raises(WeightsError, match=r"mixed.*Permission denied.*open it again"):
            replace_all(tmp_path)
    finish_saving(tmp_path)
    assert read(tmp_path) == AFTER


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "pipe", {k: v for k, v in OLD.items() if not k.startswith("unet")})
    write(tmp_path / "shared", {"a.safetensors": "old", "README.md": "mine"})
    (tmp_path / "pipe" / "unet").symlink_to(tmp_path / "shared", target_is_directory=True)
    replace_all(tmp_path / "pipe")
    assert (tmp_path / "pipe" / "unet").is_symlink()
    assert read(tmp_path / "shared") == {"a.safetensors": "new!", "c.safetensors": "new!", "README.md": "mine"}


def journal(folder: Path, **values: object) -> None:
    dead = f".saving.{names._host()}-999999999-0.part"
    text = {"aside": dead, "files": {}, "stale": [], "parts": {}, **values}
    (folder / JOURNAL).write_text(json.dumps(text))


@pytest.mark.parametrize(
    "values",
    [
        {"aside": "../outside"},
        {"aside": ".."},
        {"files": {"../outside": 1}},
        {"files": {"/etc/outside": 1}},
        {"files": {"C:\\x": 1}},
        {"files": ["x"]},
        {"files": 3},
        {"stale": ["../x.json"]},
        {"stale": ["keep.txt"]},
        {"stale": 3},
        {"stale": [None]},
        {"parts": {"..": ".x.00000000-1-1.part"}},
        {"parts": {"a/b": ".x.00000000-1-1.part"}},
        {"parts": {"a": "b"}},
        {"files": {"gone.safetensors": 12}},
        {"files": {"keep.txt": 12}},
    ],
    ids=str,
)
def test_journals_that_make_no_sense_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    folder = tmp_path / "folder"
    write(folder, {"keep.txt": "mine", "../outside": "mine"})
    journal(folder, **values)
    with pytest.raises(MalformedFile, match=r"cut short and cannot be finished .* another folder"):
        finish_saving(folder)
    assert (folder / "keep.txt").exists()
    assert (tmp_path / "outside").exists()


def test_waits_for_another_process_that_is_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "_PATIENCE", 0.1)
    waits: list[float] = []
    monkeypatch.setattr(replacing.time, "sleep", lambda s: waits.append(s))
    journal(tmp_path, aside=f".saving.{names._host()}-{os.getppid()}-0.part")
    finish_saving(tmp_path)  # one that has stopped is not waited for for ever
    assert waits
    journal(tmp_path, aside=f".saving.{names._host()}-{os.getppid()}-0.part")
    monkeypatch.setattr(replacing.time, "sleep", lambda _: (tmp_path / JOURNAL).unlink())
    finish_saving(tmp_path)


@posix
def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\nfrom leandiffusion.core.aside import aside\n"
        "with aside(pathlib.Path(sys.argv[1]) / 'x.png') as place:\n"
        "    place.mkdir() if len(sys.argv) > 2 else place.touch()\n    os.kill(os.getpid(), 9)"
    )
    for more in ([], ["folder"]):
        subprocess.run([sys.executable, "-c", code, str(tmp_path), *more], check=False)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert 1 <= len(left) <= 2  # the second took away what the first left
    assert all(has_dead_owner(name) and name.endswith(".part") for name in left)
    living = [f".x.{names._host()}-{os.getppid()}-0.part", ".x.00000000-999999999-0.part", ".x.part", "x.part"]
    write(tmp_path, dict.fromkeys(living, ""))
    with aside(tmp_path / "x.png") as place:
        place.touch()
        sweep(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*living, place.name])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(living)


def test_a_number_that_an_earlier_process_had(tmp_path: Path) -> None:
    write(tmp_path, {f".x.{names._host()}-{os.getpid()}-987654.part": ""})
    sweep(tmp_path)
    assert not read(tmp_path)


@pytest.mark.parametrize("length", [3, 240])
def test_names_fit(tmp_path: Path, length: int) -> None:
    with aside(tmp_path / ("x" * length)) as place:
        place.touch()
        assert is_aside(place.name)
