"""A plan's settings tried for real, each in a process of its own, and ranked by what they took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import BudgetError, LeanError
from ...core.units import format_bytes
from ...plan.plan import Plan, Settings
from ...plan.prediction import Prediction, StagePrediction
from ...run.size import CallSize
from ..workload import GUIDANCE, PROMPT
from .process import run_task

STEPS = 2  # after one to warm up


def calibrate(
    plan: Plan,
    model: str,
    workdir: Path,
    *,
    controlnets: Sequence[str] = (),
    ip_adapters: Sequence[str] = (),
    progress: Callable[[str], object] = lambda title: None,
) -> Plan:
    """Draw a little with the plan's settings and its runners-up, and rank them by their measured times.

    `model` as benchmarks take it: 'demo', 'shape:sd15', a folder, a file; each of the plan's ControlNets likewise.
    `ip_adapters` are files.
    Where the plan begins with pictures, pictures are drawn anew. `progress` is told what is tried next. The plan that
    comes back has what was measured beside what was predicted. BudgetError when none stayed within the budget,
    LeanError when one could not be drawn with.
    """
    checkpoint = _asked("model", name=model, workdir=str(workdir))["checkpoint"]
    nets = [_asked("controlnet", name=name, workdir=str(workdir))["checkpoint"] for name in controlnets]
    tried: list[tuple[Settings, Prediction]] = []
    for settings in (plan.settings, *plan.runners_up):
        progress(str(settings))
        asked = replace(plan, settings=settings, lower=()).to_json()
        told = _asked("try", checkpoint=checkpoint, plan=asked, controlnets=nets, ip_adapters=list(ip_adapters))
        measured = Prediction({name: StagePrediction(*figures) for name, figures in told.items()})
        tried.append((replace(settings, measured=measured), measured))
    limit = plan.budget_bytes
    fitting = [each for each in tried if limit is None or each[1].peak <= limit]
    if not fitting:
        least = format_bytes(min(measured.peak for _, measured in tried))
        raise BudgetError(f"none of the settings that were tried stayed within {plan.budget}: the least took {least}.")
    best, *others = (settings for settings, _ in sorted(fitting, key=lambda each: each[1].seconds))
    return replace(plan, settings=best, runners_up=tuple(others))


def try_plan(
    checkpoint: str, plan: dict[str, Any], controlnets: Sequence[str] = (), ip_adapters: Sequence[str] = (),
    steps: int = STEPS, repeats: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """In a process of its own: by stage the peak in bytes and the seconds of a call as planned, from a few steps."""
    wanted = Plan.from_json(plan)
    pipe = _opened(checkpoint, wanted, controlnets)
    if ip_adapters:
        pipe.load_ip_adapter([*ip_adapters])
    pipe.apply(wanted)
    told = measure_calls(pipe, wanted.call, steps, repeats, of=wanted.steps, adapters=len(ip_adapters))
    return {
        name: (told[name].peak, told[name].seconds * (wanted.steps if name == "denoise" else 1))
        for name in wanted.prediction.stages
    }


def measure_calls(
    pipe: Any, call: CallSize, steps: int, repeats: int = 1, *, of: int | None = None, adapters: int = 0
) -> dict[str, StagePrediction]:
    """What a pipeline takes by stage, 'denoise' per step on average of calls with `of` steps, else with `steps`: one
    that `open_for_drawing` opened, and so many IP-Adapters were loaded into.

    After a call of one step to warm up, `repeats` of so many `steps` are drawn: of the seconds the least counts, since
    others on the machine only ever make a stage slower; of the peaks the largest, the warm-up's included.
    """
    from ..loop import watch_steps
    from .meter import ProcessMeter

    arguments, peaks, seconds = _arguments(call, adapters), dict[str, int](), dict[str, float]()
    for repeat in range(1 + repeats):
        meter = ProcessMeter(str(pipe.device))
        pipe.watch = meter.stage
        watch_steps(pipe, meter.step)
        try:
            pipe(**arguments, num_inference_steps=steps if repeat else 1)
        finally:
            meter.close()
        for name, peak in (meter.reserved or meter.peaks).items():
            peaks[name] = max(peaks.get(name, 0), peak)
        if repeat:
            took = meter.seconds | {"denoise": _step_of(of or steps, meter.steps)}
            seconds = {name: min(took[name], seconds.get(name, math.inf)) for name in took}
    return {name: StagePrediction(peaks[name], seconds[name]) for name in seconds}


def _step_of(count: int, steps: Sequence[float]) -> float:
    """Seconds of a step on average of so many, told by fewer: the first, for which whole networks may come from disk,
    is once among them."""
    first, *others = steps
    return (first + (count - 1) * statistics.mean(others)) / count if others else first


def _opened(checkpoint: str, plan: Plan, controlnets: Sequence[str]) -> Any:
    """The pipeline that does what was planned for."""
    import torch

    from ...modules.multicontrolnet import open_controlnets
    from ..loop import open_for_drawing

    dtype = getattr(torch, plan.dtype)
    task = "image-to-image" if plan.call.pictures else "text-to-image"
    if not controlnets:
        return open_for_drawing(checkpoint, dtype=dtype, task=task)
    controlnet = open_controlnets(controlnets, dtype=dtype)
    return open_for_drawing(checkpoint, dtype=dtype, task=f"{task} with ControlNet", controlnet=controlnet)


def _arguments(call: CallSize, adapters: int = 0) -> dict[str, Any]:
    """Of the pipeline: what is drawn, on grey pictures where it begins with some, or something sees one."""
    from PIL import Image

    grey = Image.new("RGB", (call.width, call.height), (128, 128, 128))
    size = {"height": call.height, "width": call.width}
    pictures, seen = [grey] * call.pictures, [grey] * call.controls
    if pictures and seen:
        given = {"image": pictures, "control_image": seen, "strength": 1.0} | size
    elif pictures:
        given = {"image": pictures, "strength": 1.0}  # whose size is drawn
    else:
        given = size | ({"image": seen} if seen else {})
    scale = GUIDANCE if call.guidance else 1.0
    prompts = {"ip_adapter_image": [[grey] * call.image_prompts] * adapters} if adapters else {}
    return {"prompt": [PROMPT] * call.batch, "output_type": "np", "guidance_scale": scale, **given, **prompts}


def _asked(task: str, **arguments: Any) -> dict[str, Any]:
    answer = run_task(task, **arguments)
    if "result" not in answer:
        raise LeanError(f"settings could not be tried: {answer.get('absent') or answer.get('error')}")
    return answer["result"]
