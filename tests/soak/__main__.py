"""`make soak`: what a server and a batch promise, tried until it could not be luck. One summary, in a file too.

Requests made of the OpenAPI document, right and wrong; a thousand that are drawn, of whose clients a tenth leaves;
SIGTERM under load; many clients at once, slow readers, batches that are killed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contract import explore
from .ending import end_under_load
from .endure import endure
from .quick import quick_server
from .served import served

CLIENTS = ("tests/unit/server/test_openai.py", "-k", "32_clients or slow_reader or leaves or at_once")
KILLED = ("tests/unit/batch", "-m", "slow")
SIGNALS = ("tests/unit/server/test_process.py",)


def main() -> int:
    """Exit code 1 where anything of it failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="requests made of the OpenAPI document")
    parser.add_argument("--requests", type=int, default=1000, help="requests that are drawn")
    parser.add_argument("--ends", type=int, default=5, help="servers that are ended under load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="some of the parts: contract, endure, ends, clients, signals, killed")
    parser.add_argument("--out", type=Path, default=Path("soak.txt"), help="where the summary goes")
    asked = parser.parse_args()
    parts: dict[str, Callable[[], tuple[bool, str]]] = {
        "contract": lambda: _contract(asked.cases, asked.seed),
        "endure": lambda: _endured(asked.requests, asked.seed),
        "ends": lambda: _ends(asked.ends),
        "clients": lambda: _pytest(*CLIENTS),
        "signals": lambda: _pytest(*SIGNALS),
        "killed": lambda: _pytest(*KILLED),
    }
    lines = []
    for name in asked.only or parts:
        print(f"-- {name} --", flush=True)
        start = time.monotonic()
        good, told = _tried(parts[name])
        print(told, flush=True)
        lines.append(f"{name}: {'ok' if good else 'FAILED'} in {time.monotonic() - start:.0f} s. {told}")
    summary = "\n".join(lines)
    asked.out.write_text(f"{summary}\n", encoding="utf-8")
    print(f"\n{summary}\n(also in {asked.out})")
    return 1 if "FAILED in" in summary else 0


def _tried(part: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    """What came of it; the other parts run whatever happens in one."""
    try:
        return part()
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


def _contract(cases: int, seed: int) -> tuple[bool, str]:
    with quick_server() as running:
        found = explore(running.url, cases, seed)
    return not found.wrong and found.cases >= cases, str(found)


def _endured(requests: int, seed: int) -> tuple[bool, str]:
    with served("--queue", "64") as url:
        endured = endure(url, requests, seed=seed)
    return not endured.wrong, str(endured)


def _ends(count: int) -> tuple[bool, str]:
    reports = [end_under_load(after=1.0 + number) for number in range(count)]
    return not any(report.wrong for report in reports), "; ".join(map(str, reports))


def _pytest(*arguments: Any) -> tuple[bool, str]:
    """A part that is a test; its last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    ran = " passed" in lines[-1]
    return process.returncode == 0 and ran, lines[-1]


if __name__ == "__main__":
    sys.exit(main())
