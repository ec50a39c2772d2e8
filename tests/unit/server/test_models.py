"""Several models under one budget: opened when they are asked for, the one used longest ago closed for another."""

from __future__ import annotations

import asyncio
import io
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from leandiffusion.core.errors import BudgetError
from leandiffusion.drawing.options import DrawingOptions
from leandiffusion.plan import floor, make, predict
from leandiffusion.plan.budget import Budget
from leandiffusion.plan.plan import Plan
from leandiffusion.plan.stages import trace_stage
from leandiffusion.run.size import CallSize
from leandiffusion.server.errors import ApiError
from leandiffusion.server.jobs import Job
from leandiffusion.server.models import Models, Settings
from leandiffusion.server.orders import Order, draw, prepare
from leandiffusion.server.uploads import Upload

NAMES = dict.fromkeys(("a", "b", "c"), "demo")
SMALL = CallSize(64, 64)


@pytest.fixture
def evicted() -> list[str]:
    return []


@pytest.fixture
def models(on_paper: None, evicted: list[str]) -> Models:
    return Models(NAMES, evicted=evicted.append)


def drawn(models: Models, name: str, **more: Any) -> Any:
    order = prepare(
        models,
        DrawingOptions(prompt="a red circle", model=name, steps=1, seed=1, width=64, height=64, **more),
        {},
        names={},
    )
    job = order.as_job(name, models)
    assert job.begin()
    return job.work(job)[0]


def budget_for(models: Models, count: float) -> Budget:
    """One in which so many models fit: the peak of one, and the weights of the others."""
    plan = models.plan("a", SMALL)
    drawn(models, "a")
    weights = models._open["a"].resident
    models.close("a")
    assert weights > 5 << 20
    return Budget(
        Budget(None, reserves=True).to_ask_for(plan.prediction.peak + int(weights * (count - 1))), reserves=True
    )


def test_models_stay_open_as_far_as_the_budget_allows(
    models: Models, evicted: list[str], monkeypatch: pytest.MonkeyPatch
):
    budget = budget_for(models, 2.5)
    evicted.clear()
    monkeypatch.setitem(vars(models), "_budget", budget)
    models._plans.clear()
    for name in ("a", "b", "a", "c", "a", "b"):
        drawn(models, name)
    assert evicted == ["b", "c"]  # each time the one used longest ago
    assert models.opened == ["a", "b"]


def test_a_model_that_was_closed_gives_its_memory_back_and_draws_the_same_again(models: Models):
    first = drawn(models, "a")
    weights = list(models._open["a"].pipe.unet.parameters())
    models.close("a")
    assert models.opened == []
    assert drawn(models, "a").image.tobytes() == first.image.tobytes()
    assert all(one is not other for one, other in zip(weights, models._open["a"].pipe.unet.parameters(), strict=True))


def test_what_fits_nowhere_is_told_with_the_least_that_would_do(models: Models, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(vars(models), "_budget", Budget(260 << 20, reserves=True))
    with pytest.raises(BudgetError, match="the least that would do is"):
        models.plan("a", CallSize(2048, 2048))
    assert models.opened == []  # nothing was read for it


def test_what_planning_itself_leaves_in_memory_counts(models: Models, monkeypatch: pytest.MonkeyPatch):
    """The floor is asked for once, when the first call is traced, and decides what fits."""
    traced, before = [], []

    def tracing(stage: str, *args: Any, **options: Any) -> Any:
        traced.append(stage)
        return trace_stage(stage, *args, **options)

    def measured(*_: Any, **__: Any) -> int:
        before.append(len(traced))
        return 1 << 30

    monkeypatch.setattr(predict, "trace_stage", tracing)
    monkeypatch.setattr(floor, "floor_here", measured)
    monkeypatch.setitem(vars(models), "_budget", Budget(2 << 30, reserves=True))
    assert models.plan("a", SMALL).prediction.peak > 1 << 30
    assert before == [len(traced)]
    assert traced
    assert models.plan("a", replace(SMALL, width=128)).prediction.peak > 1 << 30
    assert len(before) == 1 < len(traced) / before[0]
    with pytest.raises(BudgetError):
        models.plan("a", SMALL, memory=1 << 30)


def test_calls_of_another_size_are_drawn_as_planned_for_them(models: Models, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(vars(models), "_budget", Budget(320 << 20, reserves=True))
    plans = {side: models.plan("a", CallSize(side, side)) for side in (64, 512)}
    assert plans[64].techniques != plans[512].techniques
    for side in (64, 512, 64):
        drawer = models.drawer("a", None, plans[side])
        assert drawer.pipe.plan is plans[side]
        on = {entry.name for entry in drawer.pipe.techniques}
        assert on >= {technique.name for technique in plans[side].techniques}


def redrawn(models: Models, plan: Plan | None = None) -> Any:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "PNG")
    options = DrawingOptions(prompt="a red circle", model="a", steps=2, seed=1, width=64, height=64, strength=1.0)
    order = prepare(models, options, {"image": Upload(file.getvalue(), "image/png")}, names={})
    order = order if plan is None else replace(order, plan=plan)
    job = order.as_job("a", models)
    job.begin()
    return job.work(job)[0], order.plan


def test_pictures_are_drawn_on_as_planned_too(models: Models, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(vars(models), "_budget", Budget(320 << 20, reserves=True))
    drawn(models, "a")
    picture, plan = redrawn(models)
    assert plan.call.pictures == 1
    assert picture.record.plan == {"budget": plan.budget, "settings": str(plan.settings)}
    assert picture.record.predicted == plan.prediction.figures
    assert {*picture.record.techniques} >= {technique.name for technique in plan.techniques}
    assert "picture" in picture.record.seconds


def test_memory_that_runs_out_over_a_picture_is_met_with_the_next_lower_plan(
    models: Models, monkeypatch: pytest.MonkeyPatch
):
    plan = models.plan("a", CallSize(512, 512, pictures=1))  # which has lower ones
    first, _ = redrawn(models, plan)
    unet, failures = models._open["a"].pipe.unet, [torch.OutOfMemoryError("out of memory")]
    forward = type(unet).forward

    def once_too_little(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return forward(*args, **options)

    monkeypatch.setattr(type(unet), "forward", once_too_little)
    with pytest.warns(UserWarning, match="memory ran out: going on with"):
        again, _ = redrawn(models, plan)
    assert again.image.tobytes() == first.image.tobytes()
    lower = plan.next_lower()
    assert lower is not None
    assert again.record.plan["settings"] == str(lower.settings) != str(plan.settings)
    assert "vae_tiling" in again.record.techniques
    for record in (drawn(models, "a").record, redrawn(models, plan)[0].record):  # drawn as planned again
        assert "vae_tiling" not in record.techniques


def test_plans_are_kept_but_not_without_end(models: Models, monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    monkeypatch.setattr(make, "make_plan", lambda predictor, budget, allow: made.append(predictor.call.width))
    sides = [8 * n for n in range(1, 300)]
    for side in (*sides, sides[-1], sides[0]):
        models.plan("a", CallSize(side, side))
    assert made == [*sides, sides[0]]  # the last is known, the first forgotten
    assert len(models._plans) < 300


def test_a_name_that_is_not_served_is_refused(models: Models):
    assert models.source(None) == ("a", "demo")
    for name in ("demo", "../a", "A"):
        with pytest.raises(ApiError, match="Served: a, b, c"):
            models.source(name)


def test_memory_that_runs_out_is_told_and_the_model_draws_on(on_paper: None, monkeypatch: pytest.MonkeyPatch):
    from leandiffusion.server.queue import JobQueue

    models, queue = Models({"a": "demo"}), JobQueue()
    order = prepare(models, DrawingOptions(prompt="a red circle", steps=1, width=64, height=64, seed=1), {}, names={})
    asyncio.run(_result(queue, order, models))
    unet = models._open["a"].pipe.unet

    def fail(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(unet), "forward", fail)
        with pytest.raises(ApiError) as caught:
            asyncio.run(_result(queue, order, models))
    assert caught.value.code in ("out_of_memory", "does_not_fit")
    asyncio.run(_result(queue, order, models))
    queue.close(10)


async def _result(queue: Any, order: Order, models: Models) -> Any:
    job = Job("a", "a", lambda job: draw(order, models, job))
    queue.submit(job)
    return await job.wait(60)


def test_settings_of_all_models(on_paper: None):
    models = Models({"a": "demo"}, Settings(memory="400MB", allow="rounding", dtype="bfloat16"))
    plan = models.plan("a", SMALL)
    assert (plan.budget_bytes, plan.allow, plan.dtype) == (400_000_000, "rounding", "bfloat16")


def test_pictures_are_drawn_at_once_as_long_as_that_saves_time(models: Models, monkeypatch: pytest.MonkeyPatch):
    seconds = {1: 4.0, 2: 6.0, 4: 11.0, 8: 21.5}

    def plan(name: str, call: CallSize, memory: int | None) -> Any:
        return SimpleNamespace(prediction=SimpleNamespace(seconds=seconds[call.batch]))

    monkeypatch.setattr(models, "plan", plan)
    assert models.worth_together("a", SMALL) == 4  # eight would save 2% more
    seconds[8] = 16.0
    assert models.worth_together("a", SMALL) == 8
    seconds[2] = 7.9
    assert models.worth_together("a", SMALL) == 1


def test_nobody_waits_for_finding_out_what_is_worth_drawing_together(models: Models, monkeypatch: pytest.MonkeyPatch):
    known = models.plan("a", SMALL)
    let, made = threading.Event(), make.make_plan

    def slow(*args: Any) -> Any:
        assert let.wait(60)
        return made(*args)

    monkeypatch.setattr(make, "make_plan", slow)
    assert models.together("a", SMALL) == 1
    assert models.plan("a", SMALL) is known  # while another is being made
    assert models.together("a", CallSize(72, 64)) == 1  # one thing at a time is found out
    let.set()
    assert models._trying is not None
    models._trying.join(60)
    assert models.together("a", SMALL) == models.worth_together("a", SMALL)
    assert ("a", SMALL, None) in models._together
    assert ("a", CallSize(72, 64), None) not in models._together


def test_a_request_may_keep_to_less_memory_than_there_is(models: Models, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(vars(models), "_budget", Budget(2 << 30, reserves=True))
    whole = models.plan("a", CallSize(512, 512))
    less = models.plan("a", CallSize(512, 512), 320 << 20)
    assert less.prediction.peak < whole.prediction.peak
    assert less.budget_bytes == 320 << 20
    assert models.plan("a", CallSize(512, 512), 4 << 30).budget_bytes == 2 << 30  # never more than the server's
