"""Batches on a Ray cluster of this machine: two pipelines, one of which is killed. Slow: clusters take long to start.

Skipped where Ray is not installed: pip install 'leandiffusion[ray]'.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import leandiffusion
from leandiffusion.batch import on_ray
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.pictures.record import read_record

OPTIONS = ["--size", "64", "--steps", "3"]


def begin(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(Path(leandiffusion.__file__).parents[1]),  # actors do not begin where the tests do
        "RAY_raylet_start_wait_time_s": "300",
    }
    command = [sys.executable, "-m", "leandiffusion", "batch", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def actors_of(process: psutil.Process) -> Iterator[psutil.Process]:
    for child in process.children(recursive=True):
        try:
            if "MapWorker" in " ".join(child.cmdline()):
                yield child
        except psutil.Error:
            continue


@pytest.mark.slow
def test_each_picture_once_though_an_actor_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"a red circle {number}"}) for number in range(24)]
    Path("list.jsonl").write_text("\n".join([*rows, '{"prompt": "a", "model": "no/such/folder"}']))
    process = begin("list.jsonl", "--out", "out", *OPTIONS, "--ray", "local", "--actors", "2")
    while len(list(Path("out").glob("*.png"))) < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    victim = next(actors_of(psutil.Process(process.pid)))
    before = {path: path.stat().st_ino for path in Path("out").glob("*.png")}
    victim.send_signal(signal.SIGKILL)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 1, told
    assert "Row 25 failed: no such folder: no/such/folder" in told
    lines = [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done"] * 24 + ["failed"]
    there = {path.name for path in Path("out").glob("*.png")}
    assert there == {line["file"] for line in lines[:24]}
    assert {path: path.stat().st_ino for path in before} == before, "none was drawn again"
    assert all(read_record(Path("out", name)).recipe.steps == 3 for name in there)

    alone = begin("list.jsonl", "--out", "out", *OPTIONS)
    _, told = alone.communicate(timeout=600)
    assert "1 pictures to draw, 24 rows are done" in told, "without the cluster the names are the same"


def test_where_ray_is_not_installed_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'leandiffusion\[ray\]'"):
        on_ray._ray()
