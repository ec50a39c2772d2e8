"""Calls whose IP-Adapters see pictures: what is traced against what is computed, and what a pipeline plans for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.parity import ip_adapter_files as files
from tests.unit.plan.profiles import CPU, a_profile
from tools.count_work import open_demo

from leandiffusion import ConfigError
from leandiffusion.families.ip_adapter import look
from leandiffusion.measure.work import allocated_bytes, count_flops
from leandiffusion.pipelines import planning
from leandiffusion.plan import seeing
from leandiffusion.plan.explain import headline
from leandiffusion.plan.plan import Plan
from leandiffusion.plan.predict import Predictor
from leandiffusion.plan.seeing import trace_seeing
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.run.size import CallSize
from leandiffusion.techniques.stack import make

SEEN = Image.new("RGB", (40, 30), "orange")
SIDE = 112
KINDS = [("plain",), ("plus",), ("full",), ("plain", "plus")]


@pytest.fixture(autouse=True)
def larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image encoder of 13 MB, whose layers take more than what is around them; and a machine that is known."""
    wide = {"hidden_size": 256, "intermediate_size": 1024, "projection_dim": 192, "image_size": SIDE, "patch_size": 14}
    for name, value in {"HIDDEN": 256, "PROJECTED": 192, "ENCODER": files.ENCODER | wide}.items():
        monkeypatch.setattr(files, name, value)
    monkeypatch.setattr(seeing, "HOLES", {})
    monkeypatch.setattr(planning, "profile_of", lambda device, dtypes: a_profile())
    monkeypatch.setattr(planning, "floor_here", lambda profile, networks, has_computed: profile.floor)


def opened(folder: Path, *kinds: str) -> Any:
    pipe = open_demo()
    names = [files.save_adapter(folder, pipe.unet, kind).name for kind in kinds]
    pipe.load_ip_adapter(folder, subfolder="models", weight_name=names)
    return pipe


def blueprint(pipe: Any) -> Blueprint:
    return replace(Blueprint.of_networks("demo", pipe._stack.subject.networks, CPU), eyes=pipe._eyes())


def looked(pipe: Any, count: int, batch: int) -> list[Any]:
    """As a call does."""
    adapters = pipe._adapters_loaded().adapters
    embeds = pipe.prepare_ip_adapter_image_embeds([[SEEN] * count] * len(adapters), None, None, batch, True)
    pairs = zip(adapters, embeds, strict=True)
    return [look(adapter, pipe.unet, each, pipe.dtype, pipe.device) for adapter, each in pairs]


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_what_is_traced_is_what_torch_allocates(tmp_path: Path, kinds: tuple[str, ...], count: int, batch: int) -> None:
    """What the UNet is given to the byte, operations too. The peak within 5%, and 300 KB: of one picture a layer takes
    250 KB more than is traced. Prepared pictures lie in numpy's memory, which torch does not count."""
    pipe = opened(tmp_path, *kinds)
    seen = looked(pipe, count, batch)
    real = allocated_bytes(lambda: looked(pipe, count, batch)).peak + count * 3 * SIDE**2 * 4
    bp, call = blueprint(pipe), CallSize(64, 64, batch, image_prompts=count)
    assert bp.eyes is not None
    networks, encoder = {name: part.build() for name, part in bp.networks.items()}, bp.eyes.open()
    found = trace_seeing(bp.eyes, encoder, networks, call, CPU)
    assert found.kept == sum(each.nbytes for one in seen for pair in one.values() for each in pair) > 0
    assert found.peak == pytest.approx(real, rel=0.05, abs=3e5)
    products = sum(ops.flops for ops in found.ops if ops.kind in ("matmul", "conv"))
    assert products == pytest.approx(count_flops(lambda: looked(pipe, count, batch)), rel=0.01)


def test_it_is_a_stage_of_its_own_and_its_result_lies_beside_the_others(tmp_path: Path) -> None:
    pipe = opened(tmp_path, "full")
    bp = blueprint(pipe)
    one, four, none = (
        Predictor(bp, CallSize(64, 64, 2, image_prompts=count), 10, a_profile(fetch=1e8)) for count in (1, 4, 0)
    )
    assert list(one.predict(()).stages) == ["encode", "image", "denoise", "decode"]
    assert list(none.predict(()).stages) == ["encode", "denoise", "decode"]
    for techniques in ((), (make("sequential_offload", {}),), (make("model_offload", {}),)):
        told = {predictor: predictor.predict(techniques).stages for predictor in (one, four, none)}
        kept = one._works("image", techniques)[0].work.kept
        assert kept == sum(each.nbytes for pair in looked(pipe, 1, 2)[0].values() for each in pair)
        for stage in ("denoise", "decode"):
            assert told[one][stage].peak - told[none][stage].peak == kept
            assert told[four][stage].peak - told[none][stage].peak == 4 * kept
        assert told[four]["image"].peak > told[one]["image"].peak
        read = sum(weight.nbytes for weight in pipe.image_encoder.parameters())
        assert told[four]["image"].seconds > told[one]["image"].seconds > read / 1e8
    further = Predictor(bp, replace(one.call, perturbed=True), 10, a_profile())
    assert further._seen_bytes("denoise", ()) == one._seen_bytes("denoise", ()) * 5 // 2  # rows of 4, and of 6


def test_where_embeddings_are_given_nobody_looks(tmp_path: Path) -> None:
    pipe = opened(tmp_path, "plain", "plus")
    with_encoder = blueprint(pipe)
    pipe.image_encoder = None
    without = blueprint(pipe)
    predicted = [Predictor(bp, CallSize(64, 64, image_prompts=1), 10, a_profile()) for bp in (with_encoder, without)]
    assert predicted[0].predict(()).stages["image"].seconds > predicted[1].predict(()).stages["image"].seconds > 0
    assert predicted[0].predict(()).stages["image"].peak > predicted[1].predict(()).stages["image"].peak


def test_a_pipeline_plans_for_the_pictures_of_its_calls(tmp_path: Path) -> None:
    pipe = opened(tmp_path, "plain")
    plan = pipe.plan_for("2GiB", height=64, width=64, image_prompts=2)
    assert plan.call.image_prompts == 2
    assert "with 2 image prompts" in headline(plan)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    with pytest.raises(ConfigError, match="image_prompts=0: pass a whole number"):
        pipe.plan_for("2GiB", image_prompts=0)
    pipe._keep_within("2GiB", "exact", CPU)
    call: dict[str, Any] = {"num_inference_steps": 1, "height": 64, "width": 64, "output_type": "latent"}
    pipe("a red circle", ip_adapter_image=[[SEEN] * 3], **call)
    several = pipe.plan
    assert several.call.image_prompts == 3
    assert set(several.prediction.stages) <= set(pipe.last_times) | {"decode"}
    pipe("a red circle", ip_adapter_image=SEEN, **call)
    assert pipe.plan is several
    embeds = pipe.prepare_ip_adapter_image_embeds([[SEEN] * 4], None, None, 1, True)
    pipe("a red circle", ip_adapter_image_embeds=embeds, **call)
    assert pipe.plan.call.image_prompts == 4
    pipe.unload_ip_adapter()
    assert pipe.plan_for("2GiB", image_prompts=2).call.image_prompts == 0
