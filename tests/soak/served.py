"""A server in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SERVE = (sys.executable, "-m", "leandiffusion", "serve")


class Process:
    """The server's process: `url` to reach it, `lines` of its log, the last of them."""

    def __init__(self, arguments: Sequence[str], command: Sequence[str] = SERVE) -> None:
        command = [*command, "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
        self.lines: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._serving = threading.Event()
        self._reading = threading.Thread(target=self._read, daemon=True)  # a full pipe would stop it
        self._reading.start()
        assert self._serving.wait(300), "it does not serve"
        self.url = next(line["url"] for line in self.lines if line["event"] == "serving").removesuffix("/v1")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == "serving":
                self._serving.set()
        self._serving.set()

    def end(self) -> int:
        """Ask it to end, and wait; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self._reading.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return self.process.returncode


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """`leandiffusion serve`; where it is reached."""
    process = Process(arguments)
    try:
        yield process.url
    finally:
        process.end()
