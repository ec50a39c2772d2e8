"""A plan's settings tried for real, each in a process of its own, and ranked by what they took."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import BudgetError, LeanError
from ...core.units import format_bytes
from ...plan.plan import Plan, Settings
from ...plan.predict import STAGES, Prediction, StagePrediction
from ..workload import GUIDANCE, PROMPT
from .process import run_task

STEPS = 2  # after one to warm up


def calibrate(plan: Plan, model: str, workdir: Path, *, progress: Callable[[str], object] = lambda title: None) -> Plan:
    """Draw a little with the plan's settings and its runners-up, and rank them by their measured times.

    `model` as benchmarks take it: 'demo', 'shape:sd15', a folder, a file. `progress` is told what is tried next. The
    plan that comes back has what was measured beside what was predicted. BudgetError when none stayed within the
    budget, LeanError when one could not be drawn with.
    """
    checkpoint = _asked("model", name=model, workdir=str(workdir))["checkpoint"]
    tried: list[tuple[Settings, Prediction]] = []
    for settings in (plan.settings, *plan.runners_up):
        progress(str(settings))
        told = _asked("try", checkpoint=checkpoint, plan=replace(plan, settings=settings, lower=()).to_json())
        measured = Prediction({name: StagePrediction(*told[name]) for name in STAGES})
        tried.append((replace(settings, measured=measured), measured))
    limit = plan.budget_bytes
    fitting = [each for each in tried if limit is None or each[1].peak <= limit]
    if not fitting:
        least = format_bytes(min(measured.peak for _, measured in tried))
        raise BudgetError(f"none of the settings that were tried stayed within {plan.budget}: the least took {least}.")
    best, *others = (settings for settings, _ in sorted(fitting, key=lambda each: each[1].seconds))
    return replace(plan, settings=best, runners_up=tuple(others))


def try_plan(checkpoint: str, plan: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: by stage the peak in bytes and the seconds of a call as planned, from a few steps."""
    import torch

    from ..loop import open_for_drawing
    from .meter import ProcessMeter

    wanted = Plan.from_json(plan)
    pipe = open_for_drawing(checkpoint, dtype=getattr(torch, wanted.dtype))
    pipe.apply(wanted)
    call, meter = wanted.call, ProcessMeter(wanted.device)
    arguments: dict[str, Any] = {
        "prompt": [PROMPT] * call.batch, "height": call.height, "width": call.width, "output_type": "np",
        "guidance_scale": GUIDANCE if call.guidance else 1.0,
    }  # fmt: skip

    def after_step(*_: Any) -> dict[str, Any]:
        meter.step()
        return {}

    try:
        pipe(**arguments, num_inference_steps=1)
        pipe.watch = meter.stage
        pipe(**arguments, num_inference_steps=STEPS, callback_on_step_end=after_step)
    finally:
        meter.close()
    seconds = meter.seconds | {"denoise": wanted.steps * statistics.median(meter.steps)}
    peaks = meter.reserved or meter.peaks
    return {name: (peaks[name], seconds[name]) for name in STAGES}


def _asked(task: str, **arguments: Any) -> dict[str, Any]:
    answer = run_task(task, **arguments)
    if "result" not in answer:
        raise LeanError(f"settings could not be tried: {answer.get('absent') or answer.get('error')}")
    return answer["result"]
