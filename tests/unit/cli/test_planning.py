"""`leandiffusion plan`, `generate --memory` and `--plan`, `decode`: the packaged model, with a profile on paper."""

from __future__ import annotations

import errno
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.parity import ip_adapter_files
from tests.parity.controlnet_files import save_controlnet
from tests.unit.plan.profiles import a_profile
from typer.testing import CliRunner

from leandiffusion import ControlNetModel, StableDiffusionPipeline
from leandiffusion.cli.app import app
from leandiffusion.cli.planning import PlanOptions, blueprint_of
from leandiffusion.pictures.record import read_record
from leandiffusion.pipelines import planning
from leandiffusion.plan import make, profile
from leandiffusion.plan.explain import headline
from leandiffusion.plan.plan import Plan
from leandiffusion.techniques import techniques

GENERATE = ("generate", "a red circle", "--steps", "2", "--seed", "3")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working folder, and a machine that nobody measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profile, "profile_of", lambda *args, **options: a_profile())
    monkeypatch.setattr(planning, "profile_of", lambda *args, **options: a_profile())
    monkeypatch.setattr(planning, "floor_here", lambda profile, networks, has_computed: profile.floor)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="leandiffusion")


@pytest.mark.parametrize("model", ["sd15", "sdxl", "demo"])
def test_the_answer_is_a_table_with_reasons(model: str) -> None:
    result = run("plan", model, "--memory", "3GiB", "--size", "128")
    assert result.exit_code == 0, result.output
    for told in ("within 3 GiB", "128x128", "Chosen:", "decode", "in all", "Runners-up", "Not used"):
        assert told in result.stdout
    missing = [name for name in techniques if name not in result.stdout]
    assert not missing


def planned(*arguments: str) -> Plan:
    result = run("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return Plan.from_json(json.loads(result.stdout))


def test_a_shape_is_a_family_by_its_name() -> None:
    one, other = (
        blueprint_of(PlanOptions(name, controlnet=(name,), dtype="float32", device="cpu"))
        for name in ("sd15", "shape:sd15")
    )
    assert one == other
    assert one.controls == 1


def test_several_controlnets_are_planned_for(tmp_path: Path) -> None:
    net = save_controlnet(tmp_path / "net", StableDiffusionPipeline.from_pretrained("demo").unet)
    weights = ControlNetModel.from_pretrained(net).num_parameters() * 4
    size = ("demo", "--size", "64", "--memory", "2GiB")
    none = planned(*size)
    one, two = (planned(*size, *("--controlnet", str(net)) * count) for count in (1, 2))
    mixed = planned(*size, "--controlnet", str(net), "--controlnet", "silhouette")
    assert [plan.call.controls for plan in (none, one, two, mixed)] == [0, 1, 2, 2]
    assert "with 2 ControlNets" in headline(mixed)
    steps = [plan.prediction.stages["denoise"] for plan in (none, one, two)]
    assert all(plan.techniques == none.techniques for plan in (one, two))
    for fewer, more in pairwise(steps):
        assert more.peak - fewer.peak > weights
        assert more.seconds > 1.1 * fewer.seconds


def test_what_is_tried_for_real_has_the_controlnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged one, by its name; of the settings the chosen ones only, which takes a process."""
    monkeypatch.setattr(make, "RUNNERS_UP", 0)
    plan = planned(
        "demo", "--controlnet", "silhouette", "--calibrate", "--steps", "2", "--size", "64", "--memory", "2GiB"
    )
    measured = plan.settings.measured
    assert measured is not None
    assert plan.call.controls == 1
    assert set(measured.stages) == set(plan.prediction.stages)
    assert all(stage.peak > 100 << 20 and stage.seconds > 0 for stage in measured.stages.values())


@pytest.fixture
def adapters(tmp_path: Path) -> list[str]:
    """Two kinds for the demo model, with an image encoder beside them."""
    unet = StableDiffusionPipeline.from_pretrained("demo").unet
    return [str(ip_adapter_files.save_adapter(tmp_path, unet, kind)) for kind in ("plain", "plus")]


def test_ip_adapters_are_planned_for_as_a_pipeline_plans_for_them(adapters: list[str]) -> None:
    size = ("demo", "--size", "64", "--memory", "2GiB", "--dtype", "float32")
    options = [part for path in adapters for part in ("--ip-adapter", path)]
    one, three = planned(*size, *options), planned(*size, *options, "--image-prompts", "3")
    assert [plan.call.image_prompts for plan in (planned(*size), one, three)] == [0, 1, 3]
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.load_ip_adapter(adapters)
    for plan, count in ((one, 1), (three, 3)):
        same = pipe.plan_for("2GiB", height=64, width=64, image_prompts=count)
        assert plan.settings == same.settings
        assert plan.prediction.stages["image"].peak > 0


def test_an_ip_adapter_of_another_family_is_refused(adapters: list[str]) -> None:
    result = run("plan", "sd15", "--ip-adapter", adapters[0], "--memory", "2GiB")
    assert result.exit_code == 1
    assert "plain.safetensors" in result.stderr


def test_an_image_encoder_that_is_not_there_is_told(adapters: list[str]) -> None:
    alone = Path(adapters[0]).rename("alone.safetensors")
    result = run("plan", "demo", "--ip-adapter", str(alone), "--memory", "2GiB")
    assert result.exit_code == 1
    assert "there is no image encoder in" in result.stderr


def test_pictures_that_nothing_sees_are_refused() -> None:
    result = run("plan", "demo", "--image-prompts", "2")
    assert result.exit_code == 2
    assert "--image-prompts" in result.stderr
    assert "there is no --ip-adapter" in result.stderr


def test_what_is_tried_for_real_has_the_ip_adapters(adapters: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "RUNNERS_UP", 0)
    plan = planned(
        "demo", "--ip-adapter", adapters[0], "--image-prompts", "2", "--calibrate", "--steps", "2", "--size", "64",
        "--memory", "2GiB",
    )  # fmt: skip
    measured = plan.settings.measured
    assert measured is not None
    assert set(measured.stages) == {"encode", "image", "denoise", "decode"}
    assert measured.stages["image"].seconds > 0


@pytest.mark.parametrize("option", ["--save-plan", "--plot"])
def test_a_full_disk_is_told_in_a_line(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Plan, "save", full)
    monkeypatch.setattr("leandiffusion.plan.plot.draw", full)
    result = run("plan", "demo", "--memory", "1GiB", option, "it.png")
    assert result.exit_code == 1
    assert "it.png cannot be written (No space left on device): make room there" in result.stderr


def test_json_is_a_plan() -> None:
    result = run("plan", "demo", "--memory", "1GiB", "--batch", "2", "--steps", "7", "--no-guidance", "--json")
    plan = Plan.from_json(json.loads(result.stdout))
    assert (plan.call.batch, plan.call.guidance, plan.steps, plan.budget_bytes) == (2, False, 7, 1 << 30)


def test_a_plan_is_saved_and_drawn_with(tmp_path: Path) -> None:
    saved = run("plan", "demo", "--memory", "282MiB", "--size", "128", "--save-plan", "plan.json", "--plot", "plan.png")
    assert saved.exit_code == 0, saved.output
    assert "--plan plan.json" in saved.stderr
    with Image.open("plan.png") as picture:
        assert picture.height > 300
    settings = Plan.load("plan.json").techniques
    assert settings
    drawn = run(*GENERATE, "--plan", "plan.json")
    assert drawn.exit_code == 0, drawn.output
    record = read_record(Path(drawn.stdout.strip()))
    assert list(record.techniques.values()) == [str(each) for each in settings]
    assert record.plan["budget"] == "282 MiB"
    assert record.predicted["peak_memory"] < 282 << 20


def test_a_plan_says_the_dtype_and_for_which_model_it_is() -> None:
    saved = run("plan", "demo", "--dtype", "bf16", "--memory", "1GiB", "--size", "128", "--save-plan", "plan.json")
    assert saved.exit_code == 0, saved.output
    drawn = run(*GENERATE, "--plan", "plan.json")
    assert drawn.exit_code == 0, drawn.output
    assert read_record(Path(drawn.stdout.strip())).recipe.dtype == "bfloat16"
    against = run(*GENERATE, "--plan", "plan.json", "--dtype", "fp32")
    assert against.exit_code == 1
    assert "made for weights in bfloat16, and these are in float32" in " ".join(against.stderr.split())
    assert run("plan", "sd15", "--memory", "8GiB", "--save-plan", "sd15.json").exit_code == 0
    other = run(*GENERATE, "--plan", "sd15.json")
    assert other.exit_code == 1
    assert "made for sd1, whose UNet has 859,520,964 weights" in " ".join(other.stderr.split())


def test_a_budget_decides_the_techniques_and_not_the_picture() -> None:
    plain, tight = run(*GENERATE, "--out", "a.png"), run(*GENERATE, "--memory", "282MiB", "--out", "b.png")
    assert plain.exit_code == tight.exit_code == 0, tight.output
    record = read_record(Path("b.png"))
    assert "sequential_offload" in record.techniques
    assert set(record.predicted) == {"peak_memory", "encode", "denoise", "decode"}
    assert set(read_record(Path("a.png")).predicted) == set()
    with Image.open("a.png") as one, Image.open("b.png") as other:
        difference = torch.tensor(list(one.tobytes()), dtype=torch.int) - torch.tensor(list(other.tobytes()))
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plan", "sd155"), "Did you mean 'sd15'"),
        (("plan", "sd15", "--memory", "much"), "is not a size"),
        (("plan", "sd15", "--memory", "0"), "leaves nothing"),
        (("plan", "sd15", "--memory", "cuda=1GiB"), "memory names 'cuda'"),
        (("plan", "sd15", "--memory", "cpu=1GiB,"), "is not a size"),
        (("plan", "sd15", "--memory", "50MiB"), "as predicted, the rest for errors of the prediction), set by"),
        (("plan", "shape:sd155"), "Did you mean 'shape:sd15'"),
        (("plan", "sd15", "--allow", "exakt"), "Did you mean 'exact'"),
        (("plan", "sd15", "--size", "500"), "multiple of 8"),
        (("plan", "demo", "--plot", "nowhere/plan.png"), "no folder nowhere"),
        ((*GENERATE, "--memory", "1GiB", "--vae-tiling"), "leave out vae_tiling"),
        ((*GENERATE, "--memory", "1GiB", "--plan", "plan.json"), "leave out --plan"),
        ((*GENERATE, "--plan", "plan.json"), "No such file"),
        ((*GENERATE, "--memory", "50MiB"), "the least that would do"),
        (("decode", "missing.safetensors"), "No such file"),
    ],
)
def test_what_cannot_be_is_told(arguments: tuple[str, ...], told: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert told in " ".join(result.output.replace("│", " ").split())


def test_latents_of_a_decode_that_fails_are_kept_and_decoded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    from leandiffusion.modules.vae import AutoencoderKL

    whole = run(*GENERATE, "--out", "whole.png")
    assert whole.exit_code == 0, whole.output

    def fails(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(AutoencoderKL, "decode", fails)
        result = run(*GENERATE, "--out", "later.png")
    assert result.exit_code == 1
    assert "leandiffusion decode" in result.stderr
    (kept,) = Path().glob("*.latents.safetensors")
    assert not Path("later.png").exists()
    decoded = run("decode", str(kept), "--out", "later.png")
    assert decoded.exit_code == 0, decoded.output
    with Image.open("whole.png") as one, Image.open("later.png") as other:
        assert one.tobytes() == other.tobytes()
    assert read_record(Path("later.png")).recipe == read_record(Path("whole.png")).recipe
