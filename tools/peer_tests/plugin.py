"""The pytest plugin of one run: swaps the classes, limits each test's time, and writes down how each test ended.

Environment: PEER_CLASSES 'ours' or 'diffusers', PEER_RESULTS the file to append to, PEER_LIMIT_S seconds per test.
Tests that PEER_RESULTS already has are left out, so that a run whose process died goes on behind the test it died of.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .files import CLASSES

RESULTS = Path(os.environ["PEER_RESULTS"])
LIMIT_S = float(os.environ["PEER_LIMIT_S"])


def swap_classes() -> None:
    """Put our classes where diffusers publishes its own: where each is defined, and in the packages above.

    What diffusers' other modules have imported for themselves stays, as in a script that changes its import lines.
    """
    import diffusers

    import leandiffusion

    originals = {name: getattr(diffusers, name) for name in CLASSES}  # all of them first: some import others
    for name, original in originals.items():
        for module in _publishers(original):
            if getattr(module, name, None) is original:
                setattr(module, name, getattr(leandiffusion, name))


def _publishers(original: type) -> Iterator[ModuleType]:
    parts = original.__module__.split(".")
    for i in range(1, len(parts) + 1):
        yield importlib.import_module(".".join(parts[:i]))


if os.environ["PEER_CLASSES"] == "ours":  # when the plugin is loaded: the checkout's conftest already imports diffusers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        swap_classes()


def _write(**entry: Any) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    done = {json.loads(line)["test"] for line in RESULTS.read_text("utf-8").splitlines()} if RESULTS.exists() else ()
    items[:] = [item for item in items if item.nodeid not in done]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    def too_long(*_: object) -> None:
        raise TimeoutError(f"took longer than {LIMIT_S:.0f} s")

    _write(test=item.nodeid, outcome="died", reason="the process died")
    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
    report = yield
    # Setting up decides when it fails or skips, then the test, and taking down only when it fails.
    if report.when == "call" or report.outcome != "passed":
        _write(test=item.nodeid, outcome=report.outcome, reason=_reason(call), seconds=round(call.duration, 2))
    return report


def _reason(call: pytest.CallInfo) -> str:
    """The kind of error, and the first line that says something, of the exception a test ended with."""
    if call.excinfo is None:
        return ""
    lines = [line.strip() for line in str(call.excinfo.value).splitlines() if line.strip()]
    return f"{call.excinfo.typename}: {lines[0] if lines else ''}"[:300]
