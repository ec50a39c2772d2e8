"""Schedulers whose configs say another `steps_offset` or `clip_sample` than Stable Diffusion was trained for.

Both libraries mend them when an SD pipeline is built. Settings and whole timesteps are compared, so exactly; final
latents within 1e-4 of their largest entry, as in test_pipelines.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import leandiffusion
from leandiffusion.schedulers import schedulers

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:diffusers.*")

Tiny = Callable[[str], tuple[Any, Path]]
SD1, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
# What checkpoints of 2022 say: nothing of the settings that came later.
OLD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def quietly(make: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What `make` returns, and the names of the settings that its warnings speak of."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made = make()
    told = " ".join(str(warning.message) for warning in seen)
    return made, [key for key in ("steps_offset", "clip_sample") if key in told]


def schedule(scheduler: Any) -> tuple[Any, Any, list[float]]:
    """What mending is about, and the timesteps that come of it. PNDM's warm-up needs four steps."""
    scheduler.set_timesteps(4)
    config = scheduler.config
    return config.get("steps_offset"), config.get("clip_sample"), scheduler.timesteps.tolist()


def rewritten(folder: Path, target: Path, class_name: str, **settings: Any) -> Path:
    shutil.copytree(folder, target)
    text = json.dumps({"_class_name": class_name, "_diffusers_version": "0.6.0"} | OLD | settings)
    (target / "scheduler" / "scheduler_config.json").write_text(text)
    index = json.loads((target / "model_index.json").read_text())
    (target / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", class_name]}))
    return target


@pytest.mark.parametrize("settings", [{}, {"steps_offset": 1}, {"steps_offset": 3, "clip_sample": False}], ids=str)
@pytest.mark.parametrize("class_name", ["PNDMScheduler", "DDIMScheduler", "LMSDiscreteScheduler", "DDPMScheduler"])
def test_checkpoints(tiny: Tiny, class_name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = rewritten(tiny("sd1")[1], tmp_path / "old", class_name, **settings)
    theirs = quietly(lambda: diffusers.DiffusionPipeline.from_pretrained(folder))[0]
    ours, told = quietly(lambda: leandiffusion.DiffusionPipeline.from_pretrained(folder))
    assert schedule(ours.scheduler) == schedule(theirs.scheduler)
    assert told == [key for key in ("steps_offset", "clip_sample") if _mended(class_name, settings, key)]
    ours.save_pretrained(tmp_path / "new")
    again, told = quietly(lambda: leandiffusion.DiffusionPipeline.from_pretrained(tmp_path / "new"))
    assert schedule(again.scheduler) == schedule(ours.scheduler)
    assert not told


def _mended(class_name: str, settings: dict[str, Any], key: str) -> bool:
    if key == "steps_offset":
        return settings.get(key, 0) != 1
    return class_name in ("DDIMScheduler", "DDPMScheduler") and settings.get(key, True)


@pytest.mark.parametrize("name", [SD1, SDXL])
@pytest.mark.parametrize("class_name", sorted(schedulers))
def test_schedulers_passed_by_hand(tiny: Tiny, class_name: str, name: str) -> None:
    """SDXL takes a scheduler as it is, and some have no such settings."""
    parts = tiny("sd1" if name == SD1 else "sdxl")[0].components

    def build(library: Any) -> Any:
        return getattr(library, name)(**parts | {"scheduler": getattr(library, class_name)()})

    (theirs, _), (ours, told) = (
        quietly(lambda library=library: build(library)) for library in (diffusers, leandiffusion)
    )
    assert schedule(ours.scheduler) == schedule(theirs.scheduler)
    assert bool(told) is (name == SD1 and not {"steps_offset", "clip_sample"}.isdisjoint(ours.scheduler.config))


def test_schedulers_passed_when_opening(tiny: Tiny) -> None:
    pipes = [
        quietly(lambda library=library: library.StableDiffusionPipeline.from_pretrained(
            tiny("sd1")[1], scheduler=library.DDIMScheduler()
        ))[0]
        for library in (diffusers, leandiffusion)
    ]  # fmt: skip
    theirs, ours = (schedule(pipe.scheduler) for pipe in pipes)
    assert ours == theirs


def test_a_scheduler_of_diffusers_is_mended_too(tiny: Tiny) -> None:
    part = diffusers.DDIMScheduler()
    with pytest.warns(FutureWarning, match="steps_offset=0 is taken as 1 and clip_sample=True is taken as False"):
        leandiffusion.StableDiffusionPipeline(**tiny("sd1")[0].components | {"scheduler": part})
    assert schedule(part)[:2] == (1, False)


def test_what_is_assigned_is_left_as_it_is(tiny: Tiny) -> None:
    for library in (diffusers, leandiffusion):
        pipe = library.StableDiffusionPipeline.from_pretrained(tiny("sd1")[1])
        pipe.scheduler = library.DDIMScheduler()
        assert schedule(pipe.scheduler)[:2] == (0, True)


def test_configs_go_on_to_other_classes_as_there(tiny: Tiny, tmp_path: Path) -> None:
    """A setting that the file did not have stays a default, which the next class replaces by its own."""
    folder = rewritten(tiny("sd1")[1], tmp_path / "old", "DDIMScheduler")
    theirs, ours = (
        quietly(lambda library=library: library.StableDiffusionPipeline.from_pretrained(folder))[0]
        for library in (diffusers, leandiffusion)
    )
    for class_name in schedulers:
        there, here = (
            getattr(library, class_name).from_config(pipe.scheduler.config)
            for library, pipe in ((diffusers, theirs), (leandiffusion, ours))
        )
        assert schedule(here) == schedule(there)


def test_the_same_picture_comes_out(tiny: Tiny, tmp_path: Path) -> None:
    folder = rewritten(tiny("sd1")[1], tmp_path / "old", "DDIMScheduler")
    drawn = []
    for library in (diffusers, leandiffusion):
        pipe = quietly(lambda library=library: library.StableDiffusionPipeline.from_pretrained(folder))[0]
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn.append(pipe("a cat", num_inference_steps=3, generator=generator, output_type="latent").images)
    assert (drawn[0] - drawn[1]).abs().max() < 1e-4 * drawn[0].abs().max()
