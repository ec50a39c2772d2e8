"""Work that is killed half-way, as by a power cut or by the system when memory is short."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

import torch

NAMING = [(os, name) for name in ("replace", "link", "unlink", "mkdir", "rmdir")]
"""What gives and takes files' names: (owner, attribute)."""


def killed_at(work: Callable[[], object], at: int, steps: Iterable[tuple[Any, str]]) -> tuple[bool, int]:
    """Run `work` in a forked child that is killed at the `at`-th call of any of `steps`, (owner, attribute).

    Whether it was killed, and how many of these calls it made if it was not.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def counting(step: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(*args, **kwargs)

            return call

        write = os.write
        os.fsync = lambda _: None  # type: ignore[assignment]  # a killed process loses nothing that it wrote
        for owner, name in steps:
            setattr(owner, name, counting(getattr(owner, name)))
        try:
            torch.set_num_threads(1)
            work()
            write(writing, str(count).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as stream:
        done = int(stream.read() or 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0, done
