"""Plans tried for real: in processes of their own, ranked by what they took, kept within the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leandiffusion import ControlNetModel
from leandiffusion.bench.loop import open_for_drawing
from leandiffusion.bench.run import calibrate as calibrating
from leandiffusion.bench.run import meter
from leandiffusion.bench.run.calibrate import calibrate
from leandiffusion.core.config import read_json
from leandiffusion.core.errors import BudgetError, LeanError
from leandiffusion.demo import model_folder
from leandiffusion.plan.plan import Plan, Settings
from leandiffusion.plan.prediction import STAGES, Prediction, StagePrediction
from leandiffusion.run.size import CallSize
from leandiffusion.techniques.stack import make


def settings(*names: str) -> Settings:
    stages = {stage: StagePrediction(300 << 20, 1.0) for stage in STAGES}
    return Settings(tuple(make(name, {}) for name in names), Prediction(stages))


PLAN = Plan(
    model="demo", device="cpu", dtype="float32", call=CallSize(64, 64), steps=10, allow="exact", budget="2 GiB",
    budget_bytes=2 << 30, settings=settings(), runners_up=(settings("vae_tiling"), settings("sequential_offload")),
)  # fmt: skip


def test_a_process_draws_as_planned(tmp_path: Path) -> None:
    tried: list[str] = []
    plan = calibrate(replace(PLAN, runners_up=PLAN.runners_up[1:]), "demo", tmp_path, progress=tried.append)
    assert tried == ["nothing switched on", "sequential_offload"]
    for each in (plan.settings, *plan.runners_up):
        assert each.measured is not None
        assert set(each.measured.stages) == set(STAGES)
        assert 100 << 20 < each.measured.peak < 2 << 30
        assert each.measured.seconds > 0
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


@pytest.mark.parametrize(("pictures", "controls"), [(2, 0), (0, 1), (1, 2)])
def test_what_a_plan_begins_with_is_tried_too(tmp_path: Path, pictures: int, controls: int) -> None:
    config = read_json(model_folder() / "unet" / "config.json")
    ControlNetModel.from_config(ControlNetModel.settings_for(config)).save_pretrained(tmp_path / "net")
    call = CallSize(64, 64, 2, pictures=pictures, controls=controls)
    stages = ("encode", "picture", *STAGES[1:]) if pictures else STAGES
    predicted = Settings((), Prediction({stage: StagePrediction(300 << 20, 1.0) for stage in stages}))
    plan = replace(PLAN, call=call, settings=predicted, runners_up=())
    found = calibrate(plan, "demo", tmp_path, controlnets=[str(tmp_path / "net")] * controls).settings.measured
    assert found is not None
    assert tuple(found.stages) == stages
    assert all(stage.seconds > 0 for stage in found.stages.values())


def test_every_call_is_measured_and_of_seconds_the_least_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are encoded anew each time; the peak of the first call, which makes most, counts too."""
    pipe = open_for_drawing(str(model_folder()))
    encoder, steps, peaks, clock = pipe.text_encoder, [], iter([900, 500, 500, 500, 500, 700, 1, 1, 1]), [0.0]
    forward, tick = encoder.forward, iter([5.0, 2.0, 3.0])

    def encoding(*args: Any, **kwargs: Any) -> Any:
        clock[0] += next(tick)
        return forward(*args, **kwargs)

    encoder.forward = encoding
    monkeypatch.setattr(meter.ProcessMeter, "_now", lambda self: clock[0])
    monkeypatch.setattr(meter.ProcessMeter, "step", lambda self: steps.append(1) or self._tick())
    monkeypatch.setattr(meter, "peak_rss", lambda: next(peaks))
    found = calibrating.measure_calls(pipe, CallSize(64, 64, guidance=False), steps=2, repeats=2)
    assert found["encode"].seconds == 2.0
    assert {name: stage.peak for name, stage in found.items()} == {"encode": 900, "denoise": 500, "decode": 700}
    assert len(steps) == 1 + 2 * 2


def test_what_comes_for_the_first_step_alone_is_once_among_those_that_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = open_for_drawing(str(model_folder()))
    clock, tick = [0.0], iter([9.0, 7.0, 1.0, 2.0])  # the step that warms up, then three

    def step(self: meter.ProcessMeter) -> None:
        clock[0] += next(tick)
        self._tick()

    monkeypatch.setattr(meter, "tick", lambda device: clock[0])
    monkeypatch.setattr(meter, "seconds_between", lambda one, other: other - one)
    monkeypatch.setattr(meter.ProcessMeter, "step", step)
    found = calibrating.measure_calls(pipe, CallSize(64, 64, guidance=False), steps=3, of=5)
    assert found["denoise"].seconds == pytest.approx((7.0 + 4 * 1.5) / 5)


def answers(monkeypatch: pytest.MonkeyPatch, **took: tuple[int, float]) -> None:
    """What processes would say, by the settings' first technique: bytes, and seconds of each stage."""

    def run_task(task: str, **asked: Any) -> dict[str, Any]:
        if task == "model":
            return {"result": {"checkpoint": "somewhere"}}
        on = asked["plan"]["settings"]["techniques"]
        name = on[0]["name"] if on else "nothing"
        return {"result": dict.fromkeys(STAGES, took[name])} if name in took else {"error": f"{name} broke"}

    monkeypatch.setattr(calibrating, "run_task", run_task)


def test_the_fastest_that_stayed_within_the_budget_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers(monkeypatch, nothing=(3 << 30, 1.0), vae_tiling=(1 << 30, 5.0), sequential_offload=(1 << 29, 4.0))
    plan = calibrate(PLAN, "demo", tmp_path)
    assert str(plan.settings) == "sequential_offload"
    assert [str(each) for each in plan.runners_up] == ["vae_tiling"]


def test_none_that_fits_and_none_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers(monkeypatch, nothing=(3 << 30, 1.0), vae_tiling=(4 << 30, 1.0), sequential_offload=(5 << 30, 1.0))
    with pytest.raises(BudgetError, match="the least took 3 GiB"):
        calibrate(PLAN, "demo", tmp_path)
    answers(monkeypatch, nothing=(1 << 30, 1.0))
    with pytest.raises(LeanError, match="vae_tiling broke"):
        calibrate(PLAN, "demo", tmp_path)
