"""Calls with ControlNets and on pictures: the trace against what runs, and what techniques do to each part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.plan.profiles import CPU, a_profile
from tests.unit.plan.real import real_ops
from tests.unit.plan.test_stages import sums
from tools.count_work import open_demo

from leandiffusion import AutoPipelineForImage2Image, ConfigError, ControlNetModel, StableDiffusionControlNetPipeline
from leandiffusion.demo import model_folder
from leandiffusion.families.base import families
from leandiffusion.measure.work import allocated_bytes
from leandiffusion.offload.engine import Engine
from leandiffusion.offload.policy import Policy
from leandiffusion.offload.residency import Pieces, residency
from leandiffusion.offload.units import ring_sizes, weight_bytes
from leandiffusion.pipelines import planning
from leandiffusion.plan import stages
from leandiffusion.plan.empty import empty_networks
from leandiffusion.plan.plan import Plan
from leandiffusion.plan.predict import Predictor, unet_calls
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.plan.stages import trace_stages
from leandiffusion.run.conditioning import Conditioning
from leandiffusion.run.controls import Guide, Guides
from leandiffusion.run.encoding import encode
from leandiffusion.run.run import Run
from leandiffusion.run.size import CallSize
from leandiffusion.run.tasks.text_to_image import TextToImage
from leandiffusion.techniques.stack import make

CALL = CallSize(256, 128, 2, controls=2, pictures=3)


@pytest.fixture(scope="module")
def control_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet for the packaged model, with random weights."""
    unet = open_demo().unet
    net = ControlNetModel(**ControlNetModel.settings_for(unet.config))
    folder = tmp_path_factory.mktemp("controlnet")
    net.save_pretrained(folder)
    return folder


def opened(control_folder: Path, count: int) -> Any:
    nets = [ControlNetModel.from_pretrained(control_folder) for _ in range(count)]
    pipe = StableDiffusionControlNetPipeline.from_pretrained("demo", controlnet=nets if count > 1 else nets[0])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def blueprint(control_folder: Path, count: int) -> Blueprint:
    return Blueprint.of_checkpoint(model_folder(), torch.float32, CPU).controlled_by([control_folder] * count)


def second_step(pipe: Any, call: CallSize) -> tuple[Any, Any]:
    """The ControlNets' part of a step after the first, and all of the step."""
    pipe._guidance_scale, pipe._guidance_rescale = 7.5 if call.guidance else 1.0, 0.0
    picture = torch.zeros(1, 3, call.height, call.width)
    nets = getattr(pipe.controlnet, "nets", [pipe.controlnet])
    run = Run(
        model=pipe, task=TextToImage(), conditioning_of=lambda tensors: Conditioning(tensors["prompt_embeds"]),
        shape=(call.batch, 4, call.height // 8, call.width // 8), timesteps=torch.tensor([500]),
        controls=[Guides([Guide(net, picture) for net in nets])],
    )  # fmt: skip
    rows = call.batch * (1 + call.guidance)
    run.condition_on({"prompt_embeds": torch.ones(rows, pipe.tokenizer.model_max_length, 128)})
    x = torch.zeros(run.shape)
    with torch.no_grad():
        run.predict(x, 0)
    return run, x


@pytest.mark.parametrize("guidance", [True, False])
def test_a_step_is_traced_operation_by_operation(control_folder: Path, guidance: bool) -> None:
    call = CallSize(256, 128, 2, guidance, controls=2)
    run, x = second_step(opened(control_folder, 2), call)
    real = sums(real_ops(lambda: run.predict(x, 0)))
    sketched = {name: part.build() for name, part in blueprint(control_folder, 2).networks.items()}
    found = trace_stages(sketched, call)
    assert list(found) == ["encode", "control", "denoise", "decode"]
    traced = [sums(found[part].ops) for part in ("control", "denoise")]
    for kind, (count, flops) in real.items():
        assert count == sum(part[kind][0] for part in traced)
        assert flops == pytest.approx(sum(part[kind][1] for part in traced))


def test_the_peak_of_a_step_is_what_torch_allocates(control_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `test_stages`: within 1%, and 300 KB for what is held all the while."""
    monkeypatch.setattr(stages, "HOLES", {})
    call = CallSize(256, 256, controls=1)
    run, x = second_step(opened(control_folder, 1), call)
    with torch.no_grad():
        real = allocated_bytes(lambda: run.predict(x, 0)).peak
    sketched = {name: part.build() for name, part in blueprint(control_folder, 1).networks.items()}
    found = trace_stages(sketched, call)
    plain = trace_stages({name: sketched[name] for name in ("unet", "vae", "text_encoder")}, CallSize(256, 256))
    held = 2 * 77 * 4 * sum(m.to_k.out_features * 2 for n, m in run.model.unet.named_modules() if n.endswith("attn2"))
    traced = max(found["control"].peak, found["denoise"].peak)
    assert traced - held == pytest.approx(real, rel=0.03, abs=1e6)
    assert found["denoise"].peak > plain["denoise"].peak + 0.9 * found["control"].kept


def test_pictures_are_traced_operation_by_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "HOLES", {})
    pipe = AutoPipelineForImage2Image.from_pipe(open_demo())
    call = CallSize(256, 128, pictures=3)
    found = trace_stages({"vae": empty_networks(model_folder())["vae"]}, call)
    assert list(found) == ["picture", "decode"]
    pictures = torch.zeros(3, 3, 256, 128)
    with torch.no_grad():
        encode(pipe.vae, pictures)  # its weights are read for each layer, which is not part of the stage's own
        real = allocated_bytes(lambda: encode(pipe.vae, pictures)).peak
    assert sums(found["picture"].ops) == sums(real_ops(lambda: pipe.vae.encode(pictures)))
    largest = max(weight.nbytes for weight in pipe.vae.encoder.parameters())
    assert found["picture"].peak - pictures.nbytes + largest == pytest.approx(real, rel=0.02, abs=3e5)


def predictor(bp: Blueprint, call: CallSize) -> Predictor:
    return Predictor(bp, call, 20, a_profile())


def test_controlnets_lie_where_techniques_put_them(control_folder: Path) -> None:
    bp, call = blueprint(control_folder, 1), CallSize(128, 128, controls=1)
    weights = weight_bytes(bp.networks["controlnet"].build())
    plain, with_one = Blueprint.of_checkpoint(model_folder(), torch.float32, CPU), predictor(bp, call)
    without = predictor(plain, CallSize(128, 128))
    further = with_one.predict(()).stages["decode"].peak - without.predict(()).stages["decode"].peak
    assert weights < further < weights + (16 << 20)  # and what lies around its modules
    units = (make("sequential_offload", {}),)
    assert with_one.residency(units).kept - without.residency(units).kept < 0.1 * weights
    assert with_one.residency(units).fetched["controlnet"] > 0.9 * weights
    turns = make("model_offload", {})
    own = with_one.residency((turns,))
    assert own.while_running(["unet", "controlnet"]) == own.while_running(["unet"])  # they stay together for all steps
    assert own.running["unet"] == pytest.approx(weights + without.residency((turns,)).running["unet"], rel=0.01)
    assert with_one.predict(()).stages["denoise"].seconds > 1.2 * without.predict(()).stages["denoise"].seconds


def test_what_divides_the_unet_s_call_leaves_controlnets_whole(control_folder: Path) -> None:
    bp, call = blueprint(control_folder, 1), CallSize(128, 128, 4, controls=1)
    some = predictor(bp, call)

    def of_controls(*techniques: Any) -> list[tuple[CallSize, float]]:
        works = some._works("denoise", techniques)
        return [(each.work.kept, each.count) for each in works if each.owners == ("controlnet",)]

    whole, slicing = of_controls(), make("unet_slicing", {"size": 2})
    assert of_controls(slicing) == of_controls(make("deep_cache", {})) == whole
    assert unet_calls(call, (slicing,)) == {CallSize(128, 128, 1, controls=1): 4.0}
    halved = of_controls(make("guidance_interval", {"start": 0.0, "stop": 0.5}))
    assert [count for _, count in halved] == [0.5, 0.5]
    assert halved[0][0] == 2 * halved[1][0]


def test_a_picture_is_a_stage_of_its_own(control_folder: Path) -> None:
    bp = Blueprint.of_checkpoint(model_folder(), torch.float32, CPU)
    with_picture, without = (predictor(bp, CallSize(512, 512, 4, pictures=count)) for count in (4, 0))
    assert list(with_picture.predict(()).stages) == ["encode", "picture", "denoise", "decode"]
    assert list(without.predict(()).stages) == ["encode", "denoise", "decode"]
    peaks = [
        with_picture.predict([make(name, {}) for name in names]).stages["picture"].peak
        for names in ((), ("vae_slicing",), ("vae_slicing", "vae_tiling"))
    ]
    assert peaks[0] > peaks[1] > peaks[2]


def test_a_pipeline_plans_with_what_it_has(
    control_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "profile_of", lambda device, dtypes: a_profile())
    monkeypatch.setattr(planning, "floor_here", lambda profile, networks, has_computed: profile.floor)
    pipe = opened(control_folder, 2)
    plan = pipe.plan_for("2GiB", height=128, width=128)
    assert (plan.call.controls, plan.call.pictures) == (2, 0)
    on_picture = AutoPipelineForImage2Image.from_pipe(open_demo())
    assert on_picture.plan_for("2GiB").call.pictures == 1
    assert on_picture.plan_for("2GiB", pictures=0).call.pictures == 0
    with pytest.raises(ConfigError, match="pictures=-1: pass a whole number of 0 or more"):
        on_picture.plan_for("2GiB", pictures=-1)
    saved = on_picture.plan_for("2GiB", height=128, width=128, pictures=2)
    saved.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").call == saved.call
    values = json.loads((tmp_path / "plan.json").read_text())
    values["call"]["controls"] = -1
    with pytest.raises(ConfigError, match="controls=-1: pass a whole number of 0 or more"):
        Plan.from_json(values)


def test_a_budget_is_kept_with_controlnets_and_pictures(control_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "profile_of", lambda device, dtypes: a_profile())
    monkeypatch.setattr(planning, "floor_here", lambda profile, networks, has_computed: profile.floor)
    net = ControlNetModel.from_pretrained(control_folder)
    pipe = StableDiffusionControlNetPipeline.from_pretrained("demo", controlnet=net, memory="2GiB")
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"image": torch.zeros(1, 3, 64, 64), "num_inference_steps": 1, "output_type": "latent"}
    pipe("a red circle", **options)
    assert pipe.plan.call.controls == 1


def test_loras_count(tmp_path: Path) -> None:
    pipe = open_demo()
    before = Blueprint.of_networks("demo", pipe._stack.subject.networks, CPU).others
    pipe.load_lora_weights("night")
    pipe("a red circle", num_inference_steps=1, height=64, width=64, output_type="latent")
    after = Blueprint.of_networks("demo", pipe._stack.subject.networks, CPU).others
    factors = sum(buffer.nbytes for buffer in pipe.unet.buffers())
    assert after - before >= factors > 0


def test_layers_with_adapters_travel_whole_in_plans_too() -> None:
    pipe, policy = open_demo(), Policy(CPU, part_bytes=40_000)
    rings = []
    for name in (None, "night"):
        if name is not None:
            pipe.load_lora_weights(name)
        pipe("a red circle", num_inference_steps=1, height=64, width=64, output_type="latent")
        parts = Blueprint.of_networks("demo", pipe._stack.subject.networks, CPU).networks
        engine = Engine({"unet": pipe.unet}, policy)
        rings.append(ring_sizes({held.unit for each in engine._held.values() for held in each}, policy.slots)["unet"])
        engine.close()
        assert residency(Pieces({"unet": parts["unet"].build()}), policy).running["unet"] == pytest.approx(
            rings[-1], rel=0.1
        )
    assert rings[1] > 2 * rings[0]


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_families_have_controlnets(name: str) -> None:
    family = families.get(name)
    bp = Blueprint.of_family(family, torch.float16, CPU).controlled_by([family])
    net, unet = bp.networks["controlnet"].build(), bp.networks["unet"].build()
    assert 0.2 < weight_bytes(net) / weight_bytes(unet) < 0.6
    assert net.config.cross_attention_dim == unet.config.cross_attention_dim


def test_those_in_a_pipeline_folder_take_room(control_folder: Path, tmp_path: Path) -> None:
    """Whatever the call is: each of several has a folder of its own."""
    held = []
    for count in (1, 2):
        opened(control_folder, count).save_pretrained(tmp_path / str(count))
        held.append(Blueprint.of_checkpoint(tmp_path / str(count), torch.float32, CPU).others)
    one = ControlNetModel.from_pretrained(control_folder).num_parameters() * 4
    assert held[1] - held[0] == one
    assert held[0] >= one
