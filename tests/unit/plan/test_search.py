"""The search finds what trying everything would find, and says why it left the rest out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any

import pytest
from tests.unit.plan.profiles import a_profile

from leandiffusion.core.errors import BudgetError, ConfigError
from leandiffusion.device import capabilities
from leandiffusion.plan.budget import Budget
from leandiffusion.plan.make import make_plan
from leandiffusion.plan.predict import CASTS, Predictor
from leandiffusion.plan.search import choices, everything, inexactness, leanest, legal
from leandiffusion.run.size import CallSize
from leandiffusion.techniques import Technique, techniques
from leandiffusion.techniques.base import Exactness

Make = Callable[..., Predictor]


def every_combination(predictor: Predictor, allow: Exactness) -> Iterator[tuple[Technique, ...]]:
    """One at most of the settings of each technique, as far as they are legal together."""
    subject = predictor.sketch().subject
    allowed = [cls for cls in map(techniques.get, techniques) if inexactness((cls(),)) <= list(Exactness).index(allow)]
    offers = [[None, *cls.candidates(subject, predictor.call)] for cls in allowed]
    for picked in product(*offers):
        chosen = tuple(each for each in picked if each is not None)
        cast = predictor.sketch(predictor.cast(chosen)).subject
        if legal(chosen) and all(each.candidates(cast, predictor.call) for each in chosen if each.name != CASTS):
            yield chosen


@pytest.mark.parametrize("allow", [Exactness.EXACT, Exactness.APPROXIMATE])
def test_the_pick_is_the_best_of_all_combinations(predictor: Make, allow: Exactness) -> None:
    some = predictor(128, 64, batch=2, profile=a_profile(slow_half=0.8))
    predictions = [(chosen, some.predict(chosen)) for chosen in every_combination(some, allow)]
    peaks = sorted({prediction.peak for _, prediction in predictions})
    assert len(predictions) > 200
    for budget in peaks[:: len(peaks) // 8]:
        best = min(p.seconds for _, p in predictions if p.peak <= budget)
        plan = make_plan(some, Budget(budget), allow.value)
        assert plan.prediction.peak <= budget
        assert plan.prediction.seconds <= best * 1.0201  # 1% of a stage, and of the whole
    assert leanest(some, choices(some, allow)).prediction.peak == peaks[0]


def test_less_memory_never_is_faster(predictor: Make) -> None:
    some = predictor(256, 256, batch=4)
    low = leanest(some, choices(some, Exactness.EXACT)).prediction.peak
    budgets = range(low, low + (64 << 20), 4 << 20)
    times = [make_plan(some, Budget(budget)).prediction.seconds for budget in budgets]
    assert all(after <= before * 1.021 for before, after in pairwise(times))
    assert times[-1] < times[0]


def test_nothing_is_switched_on_that_is_not_needed(predictor: Make) -> None:
    plan = make_plan(predictor(), Budget(None))
    assert {each.name for each in plan.techniques} <= {"packed_weights", "attention_backend"}
    assert "model_offload" in plan.unused


def test_only_what_is_allowed(predictor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "EMULATED", ())  # a CPU with instructions for it
    some = predictor(256, 256, profile=a_profile(slow_half=0.2))
    names = {
        allow: {each.name for each in make_plan(some, Budget(None), allow).techniques}
        for allow in ("exact", "rounding", "approximate")
    }
    assert "half_precision" not in names["exact"]
    assert "half_precision" in names["rounding"]
    assert not names["rounding"] & {"deep_cache", "guidance_interval"}
    assert {"half_precision", "deep_cache", "guidance_interval"} <= names["approximate"]
    with pytest.raises(ConfigError, match=r"allow='exakt' .* [Dd]id you mean 'exact'"):
        make_plan(some, Budget(None), "exakt")


def test_why_not_of_every_technique(predictor: Make) -> None:
    plan = make_plan(predictor(batch=2), Budget(None))
    on = {each.name for each in plan.techniques}
    assert set(plan.unused) == set(techniques) - on
    assert all(plan.unused.values())
    assert plan.unused["guidance_interval"].startswith("it is approximate")
    assert "which is not needed" in plan.unused["vae_slicing"] or "would not lower" in plan.unused["vae_slicing"]
    assert "bench" in plan.unused["compile"] or "C++" in plan.unused["compile"]
    one = make_plan(predictor(batch=1), Budget(None))
    assert "nothing in such a call" in one.unused["vae_slicing"]


def test_what_does_not_fit_says_what_would(predictor: Make) -> None:
    some = predictor(512, 512, batch=2)
    least = leanest(some, choices(some, Exactness.EXACT)).prediction
    with pytest.raises(BudgetError) as caught:
        make_plan(some, Budget(least.peak - 1))
    told = str(caught.value)
    assert "512x512, 2 pictures at a time" in told
    assert "the least that would do is" in told
    assert "One picture at a time would need" in told
    assert "Pictures of 256x256 would need" in told
    make_plan(some, Budget(least.peak))


def test_lower_plans_get_lower(predictor: Make) -> None:
    some = predictor(512, 512, batch=4)
    plan = make_plan(some, Budget(None), "rounding")
    peaks = [plan.prediction.peak, *(each.prediction.peak for each in plan.lower)]
    assert all(lower <= 0.9 * higher for higher, lower in pairwise(peaks))
    assert len(peaks) > 1
    casts = {some.cast(each.techniques) for each in (plan.settings, *plan.lower)}
    assert len(casts) == 1  # a dtype cannot change while a picture is being drawn


def test_all_combinations_are_on_the_plot(predictor: Make, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from leandiffusion.plan.plot import draw

    some = predictor(512, 512, batch=4)
    candidates = everything(some, choices(some, Exactness.EXACT))
    assert len({(each.prediction.peak, each.prediction.seconds) for each in candidates}) > 10
    draw(make_plan(some, Budget(1 << 30)), candidates, tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.width > 600


def test_calls_without_guidance_take_less(predictor: Make) -> None:
    guided, plain = predictor(256, 256), predictor(256, 256, guidance=False)
    assert plain.call == CallSize(256, 256, guidance=False)
    assert plain.predict(()).stages["denoise"].seconds < guided.predict(()).stages["denoise"].seconds
    assert plain.predict(()).stages["denoise"].peak < guided.predict(()).stages["denoise"].peak
