"""The process of one job: reads it as JSON on standard input, answers with a JSON object on standard output.

    python -m leandiffusion.bench.run.worker

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

from ...core.libraries import leave_libraries_alone
from ...core.wording import dtype_name
from ...device.host import is_host

SHARE_OF_MEMORY = 0.95
"""Share of the free memory that a process on the CPU may allocate. Beyond it allocating fails, which is an error of its
row; without a limit the system might end some process."""


def survey(device: str | None, half: str | None) -> dict[str, Any]:
    """What this machine is, the device and half precision to use where none was given, and the rows that techniques
    declare, by suite. BackendUnavailable, ConfigError."""
    from ...core.errors import ConfigError
    from ...device.capabilities import fastest_half
    from ...device.names import HOST, check_device, default_device
    from ...device.streams import can_be_timed
    from ...measure.environment import describe_for_publication
    from .declared import declared_rows

    place = check_device(device) if device else default_device()
    if not can_be_timed(place):
        raise ConfigError(
            f"device {str(place)!r} cannot be measured: use 'cpu', or a GPU whose events tell time, such as 'cuda'."
        )
    device = str(HOST if is_host(place) else place)
    half = half or dtype_name(fastest_half(place))
    environment = describe_for_publication()
    declared = {suite: [row.to_json() for row in rows] for suite, rows in declared_rows().items()}
    return {"device": device, "half": half, "environment": environment, "declared": declared}


def make_model(name: str, workdir: str) -> dict[str, Any]:
    """The checkpoint that `--model` names, made where it is a shape; and the side of its pictures."""
    from .models import find_model

    return find_model(name, Path(workdir))


def make_controlnet(name: str, workdir: str) -> dict[str, Any]:
    """The ControlNet of a path; of 'shape:sd15' and its like one with random weights, made there."""
    from .models import SHAPE, find_controlnet

    path = find_controlnet(name, Path(workdir)) if name.startswith(SHAPE) else Path(name).expanduser()
    return {"checkpoint": str(path)}


def count(checkpoint: str, size: int, batch: int) -> dict[str, Any]:
    """Floating-point operations of the stages."""
    from .flops import count_flops_of

    return dict(count_flops_of(Path(checkpoint), size, batch))


def ceiling(device: str, dtypes: list[str]) -> dict[str, Any]:
    """The machine's ceilings, measured now."""
    from ...measure.ceiling import measure_ceiling

    _choose(device, "float32")
    return measure_ceiling(device, dtypes, 0.5 if is_host(device) else 1.0)


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Let a peer write what it uses in every round."""
    asked = _read(job)
    _limit_memory(asked.workload.device)
    _drawer(asked).prepare(asked)
    return {}


def draw(job: dict[str, Any], timeline: bool) -> dict[str, Any]:
    """Draw once to warm up, then once measured."""
    import numpy as np

    from .meter import NullMeter, ProcessMeter

    asked = _read(job)
    _limit_memory(asked.workload.device)
    _choose(asked.workload.device, asked.dtype)
    meter = ProcessMeter(asked.workload.device, timeline)
    # CUDA graphs and traces are recorded in a second call.
    warm_ups = 1 if is_host(asked.workload.device) else 3

    def work() -> Any:
        with meter.stage("load"):
            drawer = _drawer(asked)(asked)
        with meter.stage("warm-up"):
            for _ in range(warm_ups):
                drawer.draw(1, NullMeter())
        return drawer.draw(asked.workload.steps, meter)

    try:
        picture, notes = _with_warnings(work)
    finally:
        meter.close()
    if picture is not None and asked.picture is not None:
        np.save(asked.picture, picture)
    return _figures(meter, asked.dtype, warm_ups, notes)


def attempt(checkpoint: str, plan: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Draw a little as a plan says; the options are those of `calibrate.try_plan`."""
    from .calibrate import try_plan

    return try_plan(checkpoint, plan, **options)


def _with_warnings(draw: Any) -> tuple[Any, list[str]]:
    """What `draw()` returns, and the warnings it gave, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = draw()
    return result, list(dict.fromkeys(str(warning.message) for warning in caught))


def _figures(meter: Any, dtype: str, warm_ups: int, notes: list[str]) -> dict[str, Any]:
    seconds, steps = dict(meter.seconds), meter.steps
    seconds["step"] = statistics.median(steps[1:] or steps)
    call = seconds.get("text", 0.0) + seconds["step"] + seconds.get("decode", 0.0)
    seconds["prepare"] = max(seconds.pop("warm-up") - warm_ups * call, 0.0)
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


def _read(job: dict[str, Any]) -> Any:
    """The job; a peer's row has the libraries as the peer's users have them."""
    from ..workload import Job

    asked = Job.from_json(job)
    if asked.row.peer is not None:
        leave_libraries_alone()
    return asked


def _drawer(job: Any) -> Any:
    if job.row.peer is None:
        from .own import Own

        return Own
    from ..peers import peers

    return peers.get(job.row.peer)


def _limit_memory(device: str) -> None:
    """Let allocating fail, rather than the system choose a process to end. Linux only."""
    if not is_host(device) or sys.platform != "linux":
        return
    import resource

    from ...measure.environment import available_memory

    free, (_, hard) = available_memory(), resource.getrlimit(resource.RLIMIT_DATA)
    if free is not None:
        most = int(free * SHARE_OF_MEMORY)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _choose(device: str, dtype: str) -> None:
    """On a GPU make the device the current one, which events and allocators go by, and float32 really float32:
    convolutions are TF32 there unless told otherwise, and rows about that switch it on themselves."""
    if is_host(device):
        return
    import torch

    from ...device.capabilities import compute_full_float32

    torch.accelerator.set_device_index(torch.device(device).index or 0)
    if dtype == "float32":
        compute_full_float32()


TASKS = {
    "survey": survey, "model": make_model, "controlnet": make_controlnet, "flops": count, "ceiling": ceiling,
    "prepare": prepare, "draw": draw, "try": attempt,
}  # fmt: skip


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked: {'result': …}, {'absent': reason} where this machine cannot do it, or {'error': text}."""
    from ...core.errors import BackendUnavailable, ConfigError, LeanError

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
