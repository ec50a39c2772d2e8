"""Plans as files: what was written comes back, and nothing else is taken for a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leandiffusion.core.errors import ConfigError
from leandiffusion.plan.plan import Plan, Settings
from leandiffusion.plan.prediction import Prediction, StagePrediction
from leandiffusion.run.size import CallSize
from leandiffusion.techniques.stack import make


def settings(*techniques: Any, peak: int = 1000) -> Settings:
    stages = {name: StagePrediction(peak - i, 1.5 * i) for i, name in enumerate(("encode", "denoise", "decode"))}
    return Settings(tuple(techniques), Prediction(stages, host=7))


def a_plan() -> Plan:
    offload = make("sequential_offload", {"resident_fraction": 0.3, "device": torch.device("cpu")})
    half = make("half_precision", {"dtype": torch.bfloat16})
    return Plan(
        model="sd1", device="cpu", dtype="float32", call=CallSize(512, 768, 2, guidance=False), steps=20,
        allow="rounding", budget="2 GiB", budget_bytes=2 << 30, settings=settings(half, offload),
        runners_up=(settings(make("vae_tiling", {"rows": 16})),),
        lower=(settings(make("unet_slicing", {}), peak=800), settings(peak=700)), unused={"compile": "it takes long"},
    )  # fmt: skip


def test_it_comes_back_from_a_file(tmp_path: Path) -> None:
    plan, path = a_plan(), tmp_path / "plan.json"
    plan.save(path)
    found = Plan.load(path)
    assert found.to_json() == plan.to_json()
    assert [str(each) for each in found.techniques] == [str(each) for each in plan.techniques]
    assert found.prediction == plan.prediction
    assert found.call == plan.call


def test_falling_back_ends() -> None:
    plan: Plan | None = a_plan()
    peaks = []
    while plan is not None:
        peaks.append(plan.prediction.peak)
        plan = plan.next_lower()
    assert peaks == [1000, 800, 700]


def mangled(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(a_plan().to_json())) | changes


def predicted(**figures: Any) -> dict[str, Any]:
    """A plan whose steps are predicted to take that."""
    values = mangled()
    values["settings"]["prediction"]["denoise"] = figures
    return values


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "not a plan of format 1"),
        ([], "not a plan of format 1"),
        (mangled(format=2), "not a plan of format 1"),
        ({k: v for k, v in mangled().items() if k != "steps"}, "lacks 'steps'"),
        (mangled(steps="many"), "steps=.many.: pass a whole number"),
        (mangled(dtype="float13"), "dtype='float13' is none of"),
        (mangled(call={"height": 0, "width": 8, "batch": 1, "guidance": True}), "height=0"),
        (
            mangled(call={"height": 8, "width": 12, "batch": 1, "guidance": True}),
            "width=12 is not divisible by 8: the nearest that is, is 16",
        ),
        (
            mangled(call={"height": True, "width": 8, "batch": 1, "guidance": True}),
            "height=True: pass a positive whole number of pixels, divisible by 8",
        ),
        (mangled(settings={"techniques": [], "prediction": {"host": 0}, "measured": None}), "lacks 'encode'"),
        (mangled(unused=3), "has a wrong value"),
        (mangled(settings=None), "has a wrong value"),
        (mangled(steps=0), "steps=0: pass a whole number of 1 or more"),
        (mangled(steps=float("inf")), "steps=inf"),
        (mangled(budget_bytes=-1), "budget_bytes=-1"),
        (mangled(allow="all"), "'all' is not a valid Exactness"),
        (mangled(call={"height": 8, "width": 8, "batch": 1.7, "guidance": True}), "batch=1.7"),
        (predicted(peak=-1, seconds=1.0), "denoise: -1 bytes"),
        (predicted(peak=1, seconds=float("nan")), "denoise: nan seconds"),
    ],
)
def test_what_is_no_plan(values: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Plan.from_json(values)


@pytest.mark.parametrize(
    ("techniques", "told"),
    [
        ([{"name": "vae_tilling"}], "[Dd]id you mean 'vae_tiling'"),
        ([{"name": "vae_tiling", "settings": {"row": 3}}], "has no setting 'row'"),
        ([{"name": "vae_tiling", "settings": {"rows": 3}}], "8 or more"),
        ([{"name": "sequential_offload"}, {"name": "compile"}], "cannot be on together"),
        ([{"name": "sequential_offload"}, {"name": "model_offload"}], "take each other's place"),
        ([{}], "lacks 'name'"),
        (3, "has a wrong value"),
    ],
)
def test_techniques_are_checked(techniques: Any, told: str) -> None:
    values = mangled()
    values["settings"]["techniques"] = techniques
    with pytest.raises(ConfigError, match=told):
        Plan.from_json(values, "plan.json")


def test_files_that_hold_none(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("{half of a")
    with pytest.raises(ConfigError, match=r"plan\.json"):
        Plan.load(path)
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "absent.json")
