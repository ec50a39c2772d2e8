"""Records of the scripts in benchmarks/: what was measured, with which settings, where and when, in one JSON file."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leandiffusion.bench.run.plan import commit
from leandiffusion.core.config import write_json
from leandiffusion.measure.environment import describe_for_publication

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def write_record(path: Path, script: str, settings: Mapping[str, Any], results: Any) -> None:
    """Write what `script` measured with `settings`. Both are JSON values."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    told = {"script": script, "settings": dict(settings), "commit": commit(), "written": now}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**told, "environment": describe_for_publication(), "results": results})


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and least to greatest."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f}-{most:.{digits}f})"
