"""One of diffusers' test files, run in a process of its own on either library's classes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import hub

ROOT = Path(__file__).parents[2]
DEATHS = 5  # of the process, each at another test, before a file is given up


@dataclass(frozen=True)
class Outcome:
    """How a test ended: 'passed', 'failed', 'skipped' or 'died', and the first line of why."""

    outcome: str
    reason: str

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


Outcomes = dict[str, Outcome]


@contextmanager
def copied(checkout: Path) -> Iterator[Path]:
    """A folder with the checkout's tests, without its sources, so that they meet the diffusers that is installed."""
    with tempfile.TemporaryDirectory(prefix="peer-tests-") as folder:
        skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(checkout / "tests", Path(folder) / "tests", ignore=skipped)
        hub.fill(Path(folder) / "hub")
        yield Path(folder)


def run_file(
    folder: Path, file: str, classes: str, *, limit_s: float, pick: str | None = None, trace: bool = False
) -> Outcomes:
    """Run a file below `folder`/tests with the `classes` of 'ours' or 'diffusers'; names of tests -> how they ended.

    `pick` is pytest's `-k`; `trace` prints where each test failed. A process that dies is started again behind the test
    that it died of.
    """
    results = folder / f"{classes}.jsonl"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "tools.peer_tests.plugin", "-p", "no:cacheprovider"]
    command += ["-q", "--no-header", "-W", "ignore", "-c", os.devnull, "--rootdir", ".", f"tests/{file}"]
    command += ["--tb=short"] if trace else ["--tb=no", "--no-summary"]
    command += ["-k", pick] if pick else []
    for _ in range(DEATHS):
        ended = subprocess.run(command, cwd=folder, env=_environment(folder, classes, results, limit_s), check=False)
        if not _died(results):
            break
    if not results.exists() and ended.returncode != 5:  # 5: no test was picked
        raise SystemExit(f"{file} could not be read with the classes of {classes}: pytest says why above.")
    return _read(results)


def _died(results: Path) -> bool:
    """Whether the last test begun was not ended."""
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    return bool(lines) and json.loads(lines[-1])["outcome"] == "died"


def _environment(folder: Path, classes: str, results: Path, limit_s: float) -> dict[str, str]:
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *map(os.path.abspath, inherited)]),
        "PEER_CLASSES": classes,
        "PEER_RESULTS": str(results),
        "PEER_LIMIT_S": str(limit_s),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DIFFUSERS_TEST_DEVICE": "cpu",
    }


def _read(results: Path) -> Outcomes:
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    entries = [json.loads(line) for line in lines]
    return {entry["test"]: Outcome(entry["outcome"], entry["reason"]) for entry in entries}  # the last one counts


def with_diffusers(folder: Path, file: str, work: Path, *, limit_s: float) -> Outcomes:
    """How the file's tests end with diffusers itself: as remembered in `work`, or run and remembered."""
    content = hashlib.sha256((folder / "tests" / file).read_bytes()).hexdigest()[:12]
    versions = "-".join(importlib.metadata.version(name) for name in ("diffusers", "torch", "transformers"))
    kept = work / f"diffusers-{versions}-{Path(file).stem}-{content}.json"
    if not kept.exists():
        found = run_file(folder, file, "diffusers", limit_s=limit_s)
        work.mkdir(parents=True, exist_ok=True)
        aside = kept.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps({test: [o.outcome, o.reason] for test, o in found.items()}), "utf-8")
        aside.replace(kept)
    return {test: Outcome(*pair) for test, pair in json.loads(kept.read_text("utf-8")).items()}
