"""A pipeline with a budget: planned when it is opened, and again for calls that are larger."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.plan.profiles import CPU, a_profile

from leandiffusion import ConfigError, DiffusionPipeline, StableDiffusionPipeline
from leandiffusion.core import malloc
from leandiffusion.core.errors import BackendUnavailable, BudgetError
from leandiffusion.demo import model_folder
from leandiffusion.device import capabilities
from leandiffusion.offload.engine import engine_of
from leandiffusion.pipelines import planning
from leandiffusion.plan import predict
from leandiffusion.plan.budget import Budget
from leandiffusion.plan.plan import Plan
from leandiffusion.plan.predict import Predictor
from leandiffusion.plan.search import choices, leanest
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.plan.stages import trace_stage
from leandiffusion.run.size import CallSize
from leandiffusion.techniques.base import Exactness
from leandiffusion.techniques.stack import make
from leandiffusion.weights.residence import is_waiting

Draw = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured, and this process, whatever the other tests left in it, has 200 MiB."""
    monkeypatch.setattr(planning, "profile_of", lambda device, dtypes: a_profile())
    monkeypatch.setattr(planning, "floor_here", lambda profile, networks, has_computed: profile.floor)


def opened(folders: dict[str, Path], memory: Any, **options: Any) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"], memory=memory, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def least(folders: dict[str, Path], **call: Any) -> int:
    """Bytes of the smallest budget that users can name for such a call."""
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    networks = pipe._stack.subject.networks
    size = CallSize(**{"height": 64, "width": 64} | call)
    predictor = Predictor(Blueprint.of_networks("sd1", networks, CPU), size, 50, a_profile())
    peak = leanest(predictor, choices(predictor, Exactness.EXACT)).prediction.peak
    return Budget(None, reserves=True).to_ask_for(peak)


def test_planning_reads_nothing_and_changes_no_picture(folders: dict[str, Path], draw: Draw) -> None:
    plain = draw(StableDiffusionPipeline.from_pretrained(folders["sd1"]))
    pipe = opened(folders, least(folders))
    assert [entry.technique for entry in pipe.techniques] == list(pipe.plan.techniques)
    assert "sequential_offload" in {entry.name for entry in pipe.techniques}
    torch.testing.assert_close(draw(pipe), plain, rtol=0, atol=1e-5)


def test_what_planning_itself_leaves_in_memory_counts(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The floor is asked for when everything is traced, and decides what fits."""
    traced: list[str] = []

    def tracing(stage: str, *args: Any, **options: Any) -> Any:
        traced.append(stage)
        return trace_stage(stage, *args, **options)

    def floor(profile: Any, networks: Any, has_computed: bool) -> int:
        before.append(len(traced))
        return 1 << 30

    before: list[int] = []
    monkeypatch.setattr(predict, "trace_stage", tracing)
    monkeypatch.setattr(planning, "floor_here", floor)
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    assert pipe.plan_for("2GiB").prediction.peak > 1 << 30
    assert before == [len(traced)]
    assert traced
    with pytest.raises(BudgetError):
        pipe.plan_for("1GiB")


def test_what_fits_is_not_offloaded(folders: dict[str, Path], draw: Draw) -> None:
    pipe = opened(folders, "2GiB")
    assert {entry.name for entry in pipe.techniques} <= {"packed_weights", "attention_backend"}
    assert all(is_waiting(network) for network in pipe._stack.subject.networks.values())
    draw(pipe)


def test_a_longer_prompt_is_planned_anew(folders: dict[str, Path], draw: Draw) -> None:
    pipe = opened(folders, "2GiB")
    pipe.prompt_syntax = "weighted"
    draw(pipe)
    short = pipe.plan
    assert short.call.chunks == 1
    draw(pipe, prompt="a BREAK b BREAK c")
    longer = pipe.plan
    assert longer.call.chunks == 3
    assert longer.prediction.stages["denoise"].peak > short.prediction.stages["denoise"].peak
    draw(pipe, prompt="a", negative_prompt="b BREAK c")
    assert pipe.plan is longer
    assert Plan.from_json(longer.to_json()).call == longer.call


def test_a_larger_call_is_planned_anew_and_a_smaller_one_is_not(folders: dict[str, Path], draw: Draw) -> None:
    pipe = opened(folders, least(folders, height=128, width=128, batch=2) + (1 << 20))
    first = pipe.plan
    draw(pipe)
    assert pipe.plan is first
    draw(pipe, height=128, width=128, num_images_per_prompt=2)
    second = pipe.plan
    assert (second.call.height, second.call.batch) == (128, 2)
    draw(pipe, height=64, width=128)
    assert pipe.plan is second
    with pytest.raises(BudgetError, match="does not fit in"):
        draw(pipe, height=512, width=512, num_images_per_prompt=4)
    draw(pipe)  # and is usable afterwards


def test_a_lora_that_comes_later_is_planned_for() -> None:
    pipe: Any = StableDiffusionPipeline.from_pretrained(model_folder(), memory="2GiB")
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"num_inference_steps": 1, "height": 64, "width": 64, "output_type": "latent"}
    pipe("a red circle", **call)
    before = pipe.plan
    pipe.load_lora_weights("night")
    assert pipe.plan is before
    pipe("a red circle", **call)
    after = pipe.plan
    assert after is not before
    assert after.prediction.peak - before.prediction.peak >= sum(factor.nbytes for factor in pipe.unet.buffers()) > 0
    pipe("a red circle", **call)
    pipe.unload_lora_weights()
    pipe("a red circle", **call)
    assert pipe.plan is after


def test_the_first_call_says_whether_it_fits_not_the_models_own_size(folders: dict[str, Path], draw: Draw) -> None:
    small = least(folders, height=16, width=16, batch=1)
    assert small < least(folders)
    pipe = opened(folders, small)
    assert pipe.plan is None
    with pytest.raises(BudgetError, match="64x64 does not fit"):
        draw(pipe)
    draw(pipe, height=16, width=16)
    assert pipe.plan.call.height == 16


def test_weights_that_begin_to_travel_within_a_call_are_in_it_as_those_that_did_before(
    folders: dict[str, Path], draw: Draw
) -> None:
    """What is freed is given back, and calls of other threads wait for theirs."""
    pipe = opened(folders, least(folders, height=16, width=16, batch=1))
    assert pipe.plan is None  # nothing is on when the call begins
    seen: list[tuple[int, bool]] = []

    def taken_elsewhere() -> bool:
        engine = engine_of(pipe.unet)
        assert engine is not None
        with ThreadPoolExecutor(1) as other:
            return not other.submit(engine.turn._lock.acquire, blocking=False).result()

    def look(*_: Any) -> dict[str, Any]:
        seen.append((len(malloc._asked.sizes), taken_elsewhere()))
        return {}

    draw(pipe, height=16, width=16, callback_on_step_end=look)
    assert "sequential_offload" in {entry.name for entry in pipe.techniques}
    assert set(seen) == {(1, True)}
    assert (len(malloc._asked.sizes), taken_elsewhere()) == (0, False)


def test_planning_again_starts_from_the_dtype_that_the_weights_were_opened_at(
    folders: dict[str, Path], draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "profile_of", lambda device, dtypes: a_profile(slow_half=0.1))
    monkeypatch.setattr(capabilities, "EMULATED", ())  # a CPU with instructions for it
    pipe = opened(folders, "2GiB", allow="rounding")
    assert "half_precision" in {entry.name for entry in pipe.techniques}
    draw(pipe, height=128, width=128)  # planned anew
    assert pipe.plan.call.height == 128
    assert "half_precision" in {entry.name for entry in pipe.techniques}
    assert pipe.dtype == torch.bfloat16
    by_hand = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    by_hand.enable("half_precision", dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="switched on by hand"):
        by_hand.plan_for("2GiB")


def test_the_class_is_chosen_by_the_checkpoint_too(folders: dict[str, Path]) -> None:
    pipe = DiffusionPipeline.from_pretrained(folders["sdxl"], memory="1GiB", allow="approximate")
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    assert {"deep_cache", "guidance_interval"} <= {entry.name for entry in pipe.techniques}


def test_a_plan_from_a_file_is_applied(folders: dict[str, Path], draw: Draw, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    plain = draw(pipe)
    pipe.plan_for(least(folders)).save(tmp_path / "plan.json")
    pipe.enable_vae_slicing()
    pipe.apply(Plan.load(tmp_path / "plan.json"))
    assert "vae_slicing" not in {entry.name for entry in pipe.techniques}
    torch.testing.assert_close(draw(pipe), plain, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="apply takes a plan"):
        pipe.apply("plan.json")


def test_a_plan_for_another_model_or_dtype_is_refused(folders: dict[str, Path], draw: Draw) -> None:
    """Before anything is switched."""
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    pipe.enable_vae_slicing()
    plain, plan = draw(pipe), pipe.plan_for("1GiB")
    other = DiffusionPipeline.from_pretrained(folders["sdxl"]).plan_for("1GiB")
    half = StableDiffusionPipeline.from_pretrained(folders["sd1"], dtype=torch.bfloat16).plan_for("1GiB")
    for wrong, told in ((other, "plan again with this model"), (half, r"open the model with dtype=torch\.bfloat16")):
        with pytest.raises(ConfigError, match=told):
            pipe.apply(wrong)
        assert pipe.plan is None
        assert [entry.name for entry in pipe.techniques] == ["vae_slicing"]
    assert torch.equal(draw(pipe), plain)
    cast = replace(
        plan, settings=replace(plan.settings, techniques=(make("half_precision", {"dtype": torch.bfloat16}),))
    )
    pipe.apply(cast)
    pipe.apply(plan)  # the weights' own dtype counts, not what the plan before made of it
    pipe.apply(replace(plan, unet_weights=None))  # an older file
    assert pipe.unet.dtype == torch.float32


@pytest.mark.parametrize("device", ["tpu", ""])
def test_a_plan_for_what_is_no_device_is_refused(folders: dict[str, Path], device: str) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    with pytest.raises(ConfigError, match="is not a device"):
        pipe.apply(replace(pipe.plan_for("1GiB"), device=device))


@pytest.mark.parametrize("missing", ["unet", "vae"])
def test_where_a_component_is_missing_a_plan_is_refused_before_anything_is_switched(
    folders: dict[str, Path], missing: str
) -> None:
    plan = StableDiffusionPipeline.from_pretrained(folders["sd1"]).plan_for("1GiB")
    tiled = replace(plan, settings=replace(plan.settings, techniques=(make("vae_tiling", {}),)))
    pipe: Any = StableDiffusionPipeline.from_pretrained(folders["sd1"], **{missing: None})
    told = {"unet": "has no UNet, which a plan is for", "vae": "vae_tiling cannot be used here: .* no .*VAE"}[missing]
    with pytest.raises((ConfigError, BackendUnavailable), match=told):
        pipe.apply(tiled)
    assert pipe.plan is None
    assert not pipe.techniques
    with pytest.raises(ConfigError, match="planning needs a UNet and a VAE"):
        pipe.plan_for("1GiB")


def test_where_embeddings_are_given_nothing_is_encoded(folders: dict[str, Path]) -> None:
    whole: Any = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    pipe: Any = StableDiffusionPipeline.from_pretrained(folders["sd1"], text_encoder=None)
    plan, other = pipe.plan_for("1GiB"), whole.plan_for("1GiB")
    assert plan.prediction.stages["encode"].seconds == 0 < other.prediction.stages["encode"].seconds
    assert plan.prediction.stages["denoise"].peak < other.prediction.stages["denoise"].peak
    assert Plan.from_json(plan.to_json()).prediction == plan.prediction


def test_two_threads_with_a_budget(folders: dict[str, Path], draw: Draw) -> None:
    pipe, failed = opened(folders, "1GiB"), []

    def work(side: int) -> None:
        try:
            draw(pipe, height=side, width=64)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(64 + 16 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"memory": "lots"}, "is not a size"),
        ({"memory": "1GiB", "offload": "model"}, "give one of them"),
        ({"memory": "1GiB", "allow": "all"}, "is none of exact"),
        ({"memory": {"xpu": "1GiB"}}, "memory names 'xpu'"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_opened(
    folders: dict[str, Path], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        StableDiffusionPipeline.from_pretrained(folders["sd1"], **options)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"batch": 0}, "batch"), ({"steps": -1}, "steps"), ({"height": 12}, "height"), ({"width": 0}, "width"),
        ({"allow": None}, "allow"), ({"memory": "0"}, "leaves nothing"),
    ],
)  # fmt: skip
def test_calls_that_there_cannot_be(sd1: Any, call: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        sd1.plan_for(**call)
