"""The process of one job: reads it as JSON on standard input, answers with a JSON object on standard output.

    python -m leandiffusion.bench.worker

Whatever libraries print goes to standard error, so that nothing mixes with the answer.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

SHARE_OF_MEMORY = 0.95
"""Of what is free a process on the CPU may take; beyond that allocating fails, before the system ends any process."""


def survey(device: str | None, half: str | None) -> dict[str, Any]:
    """What this machine is, and what to compute on and in where that was not said. BackendUnavailable, ConfigError."""
    import torch

    from ..measure.environment import describe_environment
    from ..pipelines.inputs import check_device
    from ..techniques.tf32 import fast_bfloat16

    device = str(check_device(device)) if device else "cuda" if torch.cuda.is_available() else "cpu"
    fast = "bfloat16" if fast_bfloat16() else "float32"
    half = half or ("float16" if device.startswith("cuda") else fast)
    return {"device": device, "half": half, "environment": describe_environment()}


def make_model(name: str, work: str) -> dict[str, Any]:
    """The checkpoint that `--model` names, made where it is a shape; and the side of its pictures."""
    from .models import find_model

    return find_model(name, Path(work))


def count(folder: str, size: int, batch: int) -> dict[str, Any]:
    """Floating-point operations of the stages."""
    from .flops import count_flops_of

    return dict(count_flops_of(Path(folder), size, batch))


def ceiling(device: str, dtypes: list[str]) -> dict[str, Any]:
    """What the machine reaches now."""
    from ..measure.ceiling import measure_ceiling

    return measure_ceiling(device, dtypes, 0.5)


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """What a peer writes once for all rounds."""
    from .workload import Job

    asked = Job.from_json(job)
    _drawer(asked).prepare(asked)
    return {}


def draw(job: dict[str, Any], timeline: bool) -> dict[str, Any]:
    """Draw once to warm up, once measured."""
    import numpy as np

    from .meter import Meter, Quiet
    from .own import drawn_quietly
    from .workload import Job

    asked = Job.from_json(job)
    _limit_memory(asked.workload.device)
    meter = Meter(asked.workload.device, timeline)

    def work() -> Any:
        with meter.stage("load"):
            drawer = _drawer(asked)(asked)
        with meter.stage("warm-up"):
            drawer.draw(1, Quiet())
        return drawer.draw(asked.workload.steps, meter)

    try:
        picture, notes = drawn_quietly(work)
    finally:
        meter.close()
    if picture is not None and asked.picture is not None:
        np.save(asked.picture, picture)
    return _figures(meter, asked.dtype, notes)


def _figures(meter: Any, dtype: str, notes: list[str]) -> dict[str, Any]:
    seconds, steps = dict(meter.seconds), meter.steps
    seconds["step"] = statistics.median(steps[1:] or steps)
    call = seconds.get("text", 0.0) + steps[0] + seconds.get("decode", 0.0)
    seconds["prepare"] = max(seconds.pop("warm-up") - call, 0.0)
    return {
        "seconds": seconds,
        "steps": steps,
        "peaks": meter.peaks,
        "allocated": meter.allocated,
        "reserved": meter.reserved,
        "timeline": meter.timeline,
        "dtype": dtype,
        "notes": notes,
    }


def _drawer(job: Any) -> Any:
    if job.row.peer is None:
        from .own import Own

        return Own
    from .peers import peers

    return peers.get(job.row.peer)


def _limit_memory(device: str) -> None:
    """Let allocating fail, rather than the system choose a process to end. Linux only."""
    if device != "cpu" or sys.platform != "linux":
        return
    import resource

    from ..measure.environment import available_memory

    free = available_memory()
    if free is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(free * SHARE_OF_MEMORY), resource.RLIM_INFINITY))


TASKS = {"survey": survey, "model": make_model, "flops": count, "ceiling": ceiling, "prepare": prepare, "draw": draw}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked: {'result': …}, {'absent': reason} where this machine can not, or {'error': text}."""
    from ..core.errors import BackendUnavailable, ConfigError, LeanError

    try:
        return {"result": TASKS[request.pop("do")](**request)}
    except BackendUnavailable as error:
        return {"absent": str(error)}
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())[:500]
        own = isinstance(error, LeanError) and text
        return {"error": text if own else f"{type(error).__name__}: {text}", "wrong": isinstance(error, ConfigError)}


def main() -> None:
    """Entry point of the process."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("default")
    with out:
        json.dump(answer(json.load(sys.stdin)), out, allow_nan=False)


if __name__ == "__main__":
    main()
