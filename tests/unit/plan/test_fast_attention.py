"""Plans with a faster kernel of attention: what its library takes counts, and tight budgets leave it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from leandiffusion.attention import openvino
from leandiffusion.attention.openvino import LIBRARY_BYTES
from leandiffusion.plan.budget import Budget
from leandiffusion.plan.make import make_plan
from leandiffusion.plan.predict import Predictor
from leandiffusion.plan.search import choices
from leandiffusion.techniques.attention_backend import AttentionBackendChoice
from leandiffusion.techniques.base import Exactness

from .profiles import a_profile

Make = Callable[..., Predictor]
NAME, FASTER = "attention_backend", 10


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "onednn_multiplies_faster", lambda: True)
    monkeypatch.setattr(openvino, "is_installed", lambda: True)


def fast(predictor: Make) -> Predictor:
    """At 512 px, of a machine whose other kernel has FASTER times the rate."""
    profile = a_profile()
    products = {
        dtype: {**kinds, "long attention": tuple((size, FASTER * rate) for size, rate in kinds["attention"])}
        for dtype, kinds in profile.products.items()
    }
    return predictor(512, 512, profile=replace(profile, products=products))


def test_the_library_counts_in_every_stage(predictor: Make) -> None:
    some = fast(predictor)
    without, with_it = some.predict(()), some.predict((AttentionBackendChoice(),))
    for stage in without.stages:
        assert with_it.stages[stage].peak == without.stages[stage].peak + LIBRARY_BYTES
    assert with_it.stages["denoise"].seconds < without.stages["denoise"].seconds
    assert with_it.stages["encode"].seconds == without.stages["encode"].seconds


def test_nothing_is_traced_anew_for_it(predictor: Make) -> None:
    some = fast(predictor)
    some.predict(())
    before = len(some._traced)
    some.predict((AttentionBackendChoice(),))
    assert len(some._traced) == before
    some.predict((AttentionBackendChoice("plain"),))  # whose scores show
    assert len(some._traced) > before


def test_it_is_chosen_where_there_is_room(predictor: Make) -> None:
    some = fast(predictor)
    assert NAME in {each.name for each in make_plan(some, Budget(None)).techniques}
    least = min(
        some.peak((*placed, *option))
        for placed in choices(some, Exactness.EXACT).overall
        for option in choices(some, Exactness.EXACT).by_scope["denoise"]
    )
    tight = make_plan(some, Budget(least + LIBRARY_BYTES // 2))
    assert NAME not in {each.name for each in tight.techniques}
    assert tight.unused[NAME].startswith("it would need") or "it would need" in tight.unused[NAME]


def test_where_no_other_is_faster_it_is_not_offered(predictor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    plan = make_plan(fast(predictor), Budget(None))
    assert NAME not in {each.name for each in plan.techniques}
    assert NAME in plan.unused
