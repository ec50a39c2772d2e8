"""A batch that is killed at random moments, with SIGKILL: nothing is lost, doubled or broken."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from leandiffusion.batch.folder import Folder

ROWS = 8
OPTIONS = ["--size", "64", "--steps", "2"]


def begin(folder: Path) -> subprocess.Popen[str]:
    """A process that has looked at its list, and is about to open the model."""
    command = [sys.executable, "-m", "leandiffusion", "batch", str(folder / "list.jsonl"), *OPTIONS]
    process = subprocess.Popen([*command, "--out", str(folder / "out")], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "pictures to draw" not in (line := process.stderr.readline()):
        assert line, "it ended before it began"
    return process


def whole(out: Path) -> dict[str, bytes]:
    """Pictures by name; each has to be complete."""
    there = {path.name: path for path in out.glob("*.png")}
    for name, path in there.items():
        assert Folder(out).record(name) is not None, name
        with Image.open(path) as image:
            image.load()
    return {name: path.read_bytes() for name, path in there.items()}


def killed(folder: Path, kills: int, chance: random.Random) -> int:
    """Kill a batch so many times, going on each time, and from anew when it was complete; how often it was."""
    completed, last = 0, {}
    for number in range(kills):
        place = folder / str(completed)
        place.mkdir(exist_ok=True)
        rows = (json.dumps({"prompt": f"a red circle {number}"}) for number in range(ROWS))
        (place / "list.jsonl").write_text("\n".join(rows))
        process = begin(place)
        time.sleep(chance.uniform(0.0, 3.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = whole(place / "out")
        assert last.items() <= now.items(), "what was there stays as it was"
        last = now
        if len(now) == ROWS or number == kills - 1:
            process = begin(place)
            process.communicate()
            assert process.returncode == 0
            check_complete(place / "out", last)
            completed, last = completed + 1, {}
    return completed


def check_complete(out: Path, before: dict[str, bytes]) -> None:
    """Each row has its picture, and there is nothing else: nothing aside, no picture twice."""
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done"] * ROWS
    now = whole(out)
    assert before.items() <= now.items()
    assert len(set(now.values())) == ROWS
    assert set(now) == {line["file"] for line in lines}
    assert {path.name for path in out.iterdir()} == {*now, "manifest.jsonl", ".drawing"}
    assert list((out / ".drawing").iterdir()) == []


def test_killed_twice(tmp_path: Path) -> None:
    assert killed(tmp_path, 2, random.Random()) >= 1


@pytest.mark.slow
def test_killed_thirty_times(tmp_path: Path) -> None:
    assert killed(tmp_path, 30, random.Random()) >= 1
