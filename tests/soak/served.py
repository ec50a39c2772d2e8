"""A server in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """`leandiffusion serve` in a process of its own; where it is reached."""
    command = [sys.executable, "-m", "leandiffusion", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr)
        url = next(line["url"] for line in lines if line["event"] == "serving").removesuffix("/v1")
        reading = threading.Thread(target=lambda: deque(lines, 0), daemon=True)  # a full pipe would stop it
        reading.start()
        try:
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            reading.join(10)
