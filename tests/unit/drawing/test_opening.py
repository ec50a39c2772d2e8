"""A model opened once, and pictures drawn with it."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leandiffusion import demo
from leandiffusion.cli.planning import PlanOptions, blueprint_of
from leandiffusion.core.errors import CheckpointNotFound, ConfigError
from leandiffusion.device.capabilities import usual_dtype
from leandiffusion.drawing.given import Given
from leandiffusion.drawing.opening import Drawer, dtype_for, open_model, opened_with
from leandiffusion.drawing.options import DrawingOptions, ResolvedOptions, resolve
from leandiffusion.drawing.techniques import TechniqueOptions
from leandiffusion.drawing.wrong import OptionError
from leandiffusion.pictures.latents import read_latents
from leandiffusion.pipelines.tasks import pipeline_for
from leandiffusion.schedulers import build
from leandiffusion.server.models import Models, Settings

SMALL = ResolvedOptions(prompt="a red circle", seed=5, steps=2, guidance_scale=2.5, width=64, height=64, device="cpu")


def drawer_for(options: ResolvedOptions) -> Drawer:
    drawer = Drawer(open_model(options))
    drawer.pipe.set_progress_bar_config(disable=True)
    return drawer


def alone(options: ResolvedOptions) -> np.ndarray:
    return pixels(drawer_for(options).draw(options))


def pixels(drawn: Any) -> np.ndarray:
    return np.asarray(drawn.image).astype(int)


def test_another_vae_is_opened(tmp_path: Path) -> None:
    folder = demo.model_folder() / "vae"
    pipe = open_model(replace(SMALL, vae=str(folder)))
    assert pipe.vae._origin.entries["decoder.conv_in.weight"].file.parent == folder
    with pytest.raises(CheckpointNotFound, match="vae='nowhere' is not a local"):
        open_model(replace(SMALL, vae="nowhere"))


def test_the_model_is_opened_as_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def open_pipeline(name: str, **settings: Any) -> SimpleNamespace:
        asked.update(settings, name=name)
        return SimpleNamespace(scheduler=build("ddim"), disable_perturbed_attention=lambda: None)

    monkeypatch.setattr("leandiffusion.pipelines.open_pipeline", open_pipeline)
    monkeypatch.setattr("leandiffusion.pipelines.pipeline_of", lambda name, task: pipeline_for(
        task or "text-to-image", "StableDiffusionPipeline"
    ))  # fmt: skip
    monkeypatch.setattr("leandiffusion.plan.usual.faster_dtype", lambda device, say: usual_dtype(device))
    open_model(ResolvedOptions(model="m", dtype="bfloat16", device="cpu"))
    assert asked == {"name": "m", "dtype": torch.bfloat16, "device": "cpu", "offload": None, "task": None}
    for mask, task in ((None, "image-to-image"), ("mask.png", "inpainting")):
        open_model(ResolvedOptions(model="m", image="photo.jpg", mask=mask))
        assert asked["task"] == task
    on_gpu = torch.cuda.is_available()
    assert (asked["device"], asked["dtype"]) == (("cuda", torch.float16) if on_gpu else ("cpu", torch.float32))
    lines: list[str] = []

    def measured(device: torch.device, say: Any) -> torch.dtype:
        say("measured")
        return torch.bfloat16

    monkeypatch.setattr("leandiffusion.plan.usual.faster_dtype", measured)
    open_model(ResolvedOptions(model="m", device="cpu"), say=lines.append)
    assert (asked["dtype"], lines) == (torch.bfloat16, ["measured"])
    for decided in (
        (ResolvedOptions(model="m", device="cpu", dtype="float32"), TechniqueOptions()),
        (ResolvedOptions(device="cpu"), TechniqueOptions()),  # the packaged model
        (ResolvedOptions(model="m", device="cpu"), TechniqueOptions(memory="2GiB")),
    ):
        open_model(*decided, say=lines.append)
        assert asked["dtype"] == torch.float32
    assert lines == ["measured"]


@pytest.mark.parametrize(
    ("pipeline", "said", "missing"),
    [
        ("StableDiffusionImg2ImgPipeline", {}, ["image"]),
        ("StableDiffusionPAGImg2ImgPipeline", {}, ["image"]),
        ("StableDiffusionInpaintPipeline", {}, ["image", "mask"]),
        ("StableDiffusionControlNetPipeline", {}, ["controlnet {own}", "control_image"]),
        ("StableDiffusionControlNetPipeline", {"image": "a.png"}, ["controlnet {own}", "control_image"]),
        ("StableDiffusionControlNetImg2ImgPipeline", {}, ["image", "controlnet {own}", "control_image"]),
        ("StableDiffusionImg2ImgPipeline", {"image": "a.png"}, []),
    ],
)
def test_a_model_that_draws_with_pictures_is_refused_by_its_index(
    pipeline: str, said: dict[str, Any], missing: list[str], tmp_path: Path
) -> None:
    parts = {"unet": ["diffusers", "UNet2DConditionModel"]}
    if "ControlNet" in pipeline:
        parts["controlnet"] = ["diffusers", "ControlNetModel"]
    (tmp_path / "controlnet").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **parts}))
    options = replace(SMALL, model=str(tmp_path), **said)
    with pytest.raises(ConfigError) as raised:
        open_model(options)
    given = ", ".join(missing).format(own=tmp_path / "controlnet")
    assert isinstance(raised.value, OptionError) == bool(missing)
    assert str(raised.value).endswith(f": give it {given} too." if missing else "scheduler=….")
    with pytest.raises(ConfigError, match="lacks vae"):
        open_model(replace(SMALL, model=str(tmp_path)), draws=False)


@pytest.mark.parametrize(
    ("model", "memory", "asked", "expected"),
    [
        ("sd15", None, None, torch.bfloat16),  # which is said to be faster here
        ("sd15", "2GiB", None, torch.float32),  # a plan decides
        ("sd15", None, "float32", torch.float32),
        ("demo", None, None, torch.float32),
    ],
)
def test_plans_and_the_server_take_the_dtype_that_drawing_takes(
    model: str, memory: Any, asked: Any, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leandiffusion.plan.usual.faster_dtype", lambda device, say: torch.bfloat16)
    assert dtype_for(asked, model, "cpu", planned=memory is not None) == expected
    plan = PlanOptions(model=model, memory=memory, dtype=asked, device="cpu")
    assert blueprint_of(plan).dtype == expected
    served = Models({"a": model}, Settings(memory=memory, dtype=asked, device="cpu"))
    assert served._dtype_of("a") == expected


def test_one_model_draws_whatever_it_was_not_opened_with() -> None:
    """Each as by a model of its own, in whatever order: nothing of one picture stays for the next."""
    several = [
        replace(SMALL, scheduler="dpm++-karras"),
        SMALL,
        replace(SMALL, prompt="a (blue:1.2) ring", prompt_syntax="weighted", steps=3, seed=6),
        replace(SMALL, scheduler="euler-a", guidance_scale=1.0, width=96),
        SMALL,
    ]
    assert len({opened_with(options) for options in several}) == 1
    assert opened_with(replace(SMALL, image="a.png")) != opened_with(SMALL)
    drawer = drawer_for(SMALL)
    for options in several:
        drawn = drawer.draw(options)
        assert np.array_equal(pixels(drawn), alone(options)), options
        recipe = drawn.record.recipe
        assert (recipe.prompt, recipe.seed, recipe.scheduler) == (options.prompt, options.seed, options.scheduler)
    noise = build("ddim", {"beta_start": 0.002})
    drawer.pipe.scheduler = noise
    own = Drawer(drawer.pipe)
    own.draw(replace(SMALL, scheduler="euler"))
    assert drawer.pipe.scheduler.config.beta_start == 0.002  # the model's own noise schedule stays


def test_pictures_of_one_call_are_those_drawn_alone() -> None:
    several = [SMALL, replace(SMALL, prompt="a blue ring", seed=9), replace(SMALL, negative_prompt="red")]
    drawer = drawer_for(SMALL)
    together = drawer.draw_together(several)
    for options, drawn in zip(several, together, strict=True):
        assert abs(pixels(drawn) - pixels(drawer.draw(options))).max() <= 1  # sums in another order
        assert (drawn.record.recipe.seed, drawn.record.recipe.prompt) == (options.seed, options.prompt)
    with pytest.raises(ConfigError, match="differ in prompt, negative_prompt, seed alone"):
        drawer.draw_together([SMALL, replace(SMALL, steps=3)])


def test_a_step_is_told_and_can_end_the_drawing() -> None:
    steps = []

    class Cancelled(Exception):
        pass

    def on_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        steps.append(step)
        if len(steps) == 2:
            raise Cancelled

    drawer = drawer_for(SMALL)
    options = replace(SMALL, steps=5)
    with pytest.raises(Cancelled):
        drawer.draw(options, on_step=on_step)
    assert steps == [0, 1]
    assert np.array_equal(pixels(drawer.draw(options)), alone(options))


def test_latents_that_cannot_be_decoded_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawer = drawer_for(SMALL)
    good = drawer.draw(SMALL)

    def fail(*_: Any) -> None:
        raise RuntimeError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(drawer.pipe, "_decode", fail)
        with pytest.raises(RuntimeError, match="no room") as caught:
            drawer.draw(SMALL)
    path = drawer.keep_latents(caught.value, SMALL, Given(), tmp_path)
    assert path == tmp_path / "a-red-circle.latents.safetensors"
    latents, record = read_latents(path)
    assert record.recipe == good.record.recipe
    assert np.array_equal(np.asarray(drawer.pipe.decode(latents)[0]), np.asarray(good.image))
    assert drawer.keep_latents(RuntimeError("before decoding"), SMALL, Given(), tmp_path) is None


def test_uploads_are_drawn_from_and_nothing_else_is_read(tmp_path: Path) -> None:
    """The same picture as from files; a name that was not uploaded is no path, even where there is such a file."""
    picture, mask = Image.new("RGB", (64, 64), "navy"), Image.new("L", (64, 64), 255)
    for name, image in (("a.png", picture), ("m.png", mask)):
        image.save(tmp_path / name)
    files = {name: str(tmp_path / f"{name[0]}.png") for name in ("mask",)} | {"image": str(tmp_path / "a.png")}
    from_files = resolve(replace(_asked(), **files))
    drawer = drawer_for(from_files)
    expected = pixels(drawer.draw(from_files, Given.read(from_files)))

    uploaded = resolve(replace(_asked(), image="photo", mask="where"))
    uploads = {"photo": _png(picture), "where": _png(mask)}
    given = Given.read(uploaded, uploads)
    drawn = drawer.draw(uploaded, given)
    assert np.array_equal(pixels(drawn), expected)
    assert drawn.record.inputs["image"] == hashlib.sha256(uploads["photo"]).hexdigest()
    assert drawn.record.recipe.image == "photo"
    with pytest.raises(OptionError, match=r"^image: .*was not uploaded"):
        Given.read(from_files, uploads)
    with pytest.raises(OptionError, match=r"^mask: where is no picture"):
        Given.read(uploaded, uploads | {"where": b"no picture"})


def _asked() -> DrawingOptions:
    return DrawingOptions(**{name: value for name, value in vars(SMALL).items() if value != ()})


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_a_checkpoint_saved_with_perturbed_attention_is_drawn_without(tmp_path: Path) -> None:
    """Whose record would say so."""
    from leandiffusion import StableDiffusionPAGPipeline

    StableDiffusionPAGPipeline.from_pretrained("demo").save_pretrained(tmp_path)
    pipe = open_model(ResolvedOptions(model=str(tmp_path), dtype="float32", device="cpu"))
    assert type(pipe) is StableDiffusionPAGPipeline
    assert pipe.perturbed_attention is None
    pipe = open_model(ResolvedOptions(model=str(tmp_path), dtype="float32", device="cpu", pag_scale=2.0))
    assert pipe.pag_scale == 2.0
