"""One process per job: its peak memory is its own, and a crash ends that job alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any

from ...core.libraries import environment_of_others

LINES_OF_TROUBLE = 3
SECONDS_TO_CLEAN_UP = 5.0


def run_task(task: str, **arguments: Any) -> dict[str, Any]:
    """Let a fresh process do a task of `worker`; its answer, or {'error': …} when it died without one.

    Ctrl-C ends it: it has a process group of its own, so that only this process is interrupted by a terminal.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "leandiffusion.bench.run.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            env=environment_of_others(),
        )  # fmt: skip
        try:
            out, _ = process.communicate(json.dumps({"do": task, **arguments}))
        except BaseException:
            _end(process)
            raise
        try:
            return json.loads(out)
        except ValueError:
            errors.seek(0)
            return {"error": _last_words(process.returncode, errors.read())}


def _end(process: subprocess.Popen[str]) -> None:
    """Let the process clean up, as Ctrl-C would; then end it, and whatever it started, for good."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_CLEAN_UP)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(code: int, text: str) -> str:
    """What is known of a process that died without an answer."""
    last = " | ".join(line.strip() for line in text.splitlines()[-LINES_OF_TROUBLE:])
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = ", perhaps out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}{': ' + last if last else ''}"
    return f"its process ended with code {code}{': ' + last if last else ''}"
