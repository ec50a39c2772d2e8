"""`make soak`: what a server and a batch promise, tried until it could not be luck. One summary, in a file too.

Requests made of the OpenAPI document, right and wrong; a thousand that are drawn, of whose clients a tenth leaves;
SIGTERM under load; many clients at once, slow readers, batches that are killed; what the server adds to a picture.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.unit.batch.test_killed import killed

from .contract import explore
from .ending import end_under_load
from .endure import endure
from .quick import quick_server
from .served import served

CLIENTS = ("tests/unit/server/test_openai.py", "-k", "32_clients or slow_reader or leaves or at_once")
SIGNALS = ("tests/unit/server/test_process.py",)
ON_RAY = ("tests/unit/batch/test_on_ray.py", "-m", "slow")
MOST_MINUTES = 15
"""Of a part that is a test or a benchmark. The others have limits of their own for whatever they wait for."""
MOST_ADDED = 0.03
"""Of what drawing takes: what the server takes besides."""

Told = tuple[bool, str]
"""Whether a part is as it should be, and what came of it."""


def main() -> int:
    """Exit code 1 where anything of it failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="requests made of the OpenAPI document")
    parser.add_argument("--requests", type=int, default=1000, help="requests that are drawn")
    parser.add_argument("--ends", type=int, default=5, help="servers that are ended under load")
    parser.add_argument("--kills", type=int, default=30, help="times that a batch is killed")
    parser.add_argument("--rounds", type=int, default=3, help="of the full-size network, by server and by library")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, metavar="PART", help=f"some of the parts: {', '.join(PARTS)}"
    )
    parser.add_argument("--work", type=Path, help="where the full-size network's weights are made, and stay")
    parser.add_argument("--out", type=Path, default=Path("soak.txt"), help="where the summary goes")
    asked = parser.parse_args()
    lines: list[str] = []
    try:
        for name in asked.only or PARTS:
            print(f"-- {name} --", flush=True)
            start = time.monotonic()
            good, told = _tried(PARTS[name], asked)
            print(told, flush=True)
            lines.append(f"{name}: {'ok' if good else 'FAILED'} in {time.monotonic() - start:.0f} s. {told}")
            asked.out.write_text("\n".join([*lines, ""]), encoding="utf-8")  # so that an end in between leaves it
    finally:
        print("\n".join(["", *lines, f"(also in {asked.out})"]))
    return 1 if any("FAILED in" in line for line in lines) else 0


def _tried(part: Callable[[argparse.Namespace], Told], asked: argparse.Namespace) -> Told:
    """What came of it; the other parts run whatever happens in one."""
    try:
        return part(asked)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


def _contract(asked: argparse.Namespace) -> Told:
    with quick_server() as running:
        found = explore(running.url, asked.cases, asked.seed)
    return not found.wrong and found.cases >= asked.cases, str(found)


def _endured(asked: argparse.Namespace) -> Told:
    with served("--queue", "64") as url:
        endured = endure(url, asked.requests, seed=asked.seed)
    return not endured.wrong, str(endured)


def _ends(asked: argparse.Namespace) -> Told:
    reports = [end_under_load(after=1.0 + number) for number in range(asked.ends)]
    return not any(report.wrong for report in reports), "; ".join(map(str, reports))


def _killed(asked: argparse.Namespace) -> Told:
    with tempfile.TemporaryDirectory() as folder:
        completed = killed(Path(folder), asked.kills, random.Random(asked.seed))
    return True, f"{asked.kills} kills, {completed} lists drawn to their end: no picture lost, doubled or broken"


def _on_ray(asked: argparse.Namespace) -> Told:
    if importlib.util.find_spec("ray") is None:
        return True, "skipped: Ray is not installed here"
    return _pytest(*ON_RAY)


def _overhead(asked: argparse.Namespace) -> Told:
    """What the server adds to a picture of full size, and what drawing requests at once gives."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "serving.json")
        command = ["benchmarks.serving", "--rounds", str(asked.rounds), "--count", "16", "--out", str(out)]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        code, lines = _run([*command, "--work", str(asked.work or folder)], environment)
        if code:
            return False, f"exit code {code}, after {MOST_MINUTES} minutes at most: {lines[-1]}"
        results = json.loads(out.read_text(encoding="utf-8"))["results"]
    ratio, gain = (statistics.median(results[name]) for name in ("ratio", "gain"))
    told = (
        f"the server adds {results['added']:.1%} of a drawing, and takes {ratio:.3f} times as long as the library; "
        f"8 clients get {gain:.2f} times as much as one"
    )
    return results["added"] <= MOST_ADDED, told


def _pytest(*arguments: str) -> Told:
    """A part that is a test; its last line."""
    code, lines = _run(["pytest", "-q", "-p", "no:cacheprovider", *arguments])
    return code == 0 and " passed" in lines[-1], lines[-1]


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
    """The exit code of a Python module, and what it printed. After MOST_MINUTES it is killed, with what it started."""
    command, lines = [sys.executable, "-m", *command], [""]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, start_new_session=True, **streams) as process:
        assert process.stdout is not None
        timer = threading.Timer(60 * MOST_MINUTES, _kill, [process])
        timer.start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.strip())
        finally:
            timer.cancel()
            if sys.exc_info()[0]:
                _kill(process)
    return process.returncode, lines


def _kill(process: subprocess.Popen[str]) -> None:
    """With all of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


PARTS: dict[str, Callable[[argparse.Namespace], Told]] = {
    "overhead": _overhead, "contract": _contract, "endure": _endured, "ends": _ends,
    "clients": lambda asked: _pytest(*CLIENTS), "signals": lambda asked: _pytest(*SIGNALS), "killed": _killed,
    "ray": _on_ray,
}  # fmt: skip
"""In the order in which they run."""


if __name__ == "__main__":
    sys.exit(main())
