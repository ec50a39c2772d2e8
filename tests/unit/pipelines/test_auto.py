"""Which pipeline a checkpoint, another pipeline or a task asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import leandiffusion
from leandiffusion import ConfigError, DiffusionPipeline
from leandiffusion.pipelines import classes, open_pipeline
from leandiffusion.pipelines.tasks import PERTURBED, TASKS, perturbed, pipeline_for

AUTO = {
    "text-to-image": leandiffusion.AutoPipelineForText2Image,
    "image-to-image": leandiffusion.AutoPipelineForImage2Image,
    "inpainting": leandiffusion.AutoPipelineForInpainting,
}
FAMILIES = ("sd1", "sdxl")
Folders = dict[str, Path]


@pytest.mark.parametrize("task", AUTO)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_task_says_which_class(folders: Folders, family: str, task: str) -> None:
    wanted = getattr(leandiffusion, TASKS[task][FAMILIES.index(family)])
    assert type(AUTO[task].from_pretrained(folders[family])) is wanted
    assert type(open_pipeline(folders[family], task=task)) is wanted
    assert type(wanted.from_pretrained(folders[family])) is wanted
    for other in AUTO.values():
        made = other.from_pipe(wanted.from_pretrained(folders[family]))
        assert type(AUTO[task].from_pipe(made)) is wanted


def test_weights_are_shared_and_not_read(folders: Folders) -> None:
    draw = AUTO["text-to-image"].from_pretrained(folders["sd1"])
    redraw = AUTO["image-to-image"].from_pipe(draw)
    assert all(part is draw.components[name] for name, part in redraw.components.items())
    assert redraw.name_or_path == draw.name_or_path
    assert type(DiffusionPipeline.from_pipe(redraw)) is type(redraw)


@pytest.mark.parametrize("family", FAMILIES)
def test_controlnets_are_kept_between_tasks(folders: Folders, family: str) -> None:
    draw = AUTO["text-to-image"].from_pretrained(folders[family])
    net = leandiffusion.ControlNetModel(**leandiffusion.ControlNetModel.settings_for(draw.unet.config))
    along = AUTO["text-to-image"].from_pipe(draw, controlnet=net)
    assert type(along).__name__ == TASKS["text-to-image with ControlNet"][FAMILIES.index(family)]
    again = AUTO["inpainting"].from_pipe(along)
    assert type(again).__name__ == TASKS["inpainting with ControlNet"][FAMILIES.index(family)]
    assert again.controlnet is net
    assert type(AUTO["image-to-image"].from_pipe(again, controlnet=None)).__name__ == TASKS["image-to-image"][
        FAMILIES.index(family)
    ]  # fmt: skip


def test_the_demo_still_says_what_it_does_not_know() -> None:
    draw = AUTO["text-to-image"].from_pretrained("demo")
    assert AUTO["image-to-image"].from_pipe(draw).notice is draw.notice is not None


@pytest.mark.parametrize("task", ["image-to-image", "inpainting"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_remembers_its_task(folders: Folders, tmp_path: Path, family: str, task: str) -> None:
    saved = AUTO[task].from_pretrained(folders[family])
    saved.save_pretrained(tmp_path)
    opened = open_pipeline(tmp_path)
    assert type(opened) is type(saved)
    assert opened.parameters == saved.parameters
    assert type(AUTO["text-to-image"].from_pretrained(tmp_path)).__name__ == TASKS["text-to-image"][
        FAMILIES.index(family)
    ]  # fmt: skip


@pytest.mark.parametrize("auto", AUTO.values())
def test_they_are_no_pipelines(auto: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{auto.__name__}\.from_pretrained.*from_pipe"):
        auto()
    with pytest.raises(ConfigError, match=r"Object.. is none of the pipelines here"):
        auto.from_pipe(type("Object", (), {})())


def test_unknown_tasks() -> None:
    with pytest.raises(ConfigError, match=r"task='video' is unknown: use 'text-to-image'"):
        open_pipeline("demo", task="video")


def test_every_pipeline_is_in_the_table() -> None:
    tasks = TASKS | {f"{task}{PERTURBED}": tuple(map(perturbed, names)) for task, names in TASKS.items()}
    assert set(classes()) == {name for names in tasks.values() for name in names}
    assert all(cls is getattr(leandiffusion, name) for name, cls in classes().items())
    for name in classes():
        assert [pipeline_for(task, name) for task in tasks] == [
            names[0 if "XL" not in name else 1] for names in tasks.values()
        ]


def test_a_subclass_counts_as_what_it_derives_from() -> None:
    derived = type("Mine", (leandiffusion.StableDiffusionXLPipeline,), {})
    assert pipeline_for("inpainting", derived) == "StableDiffusionXLInpaintPipeline"


@pytest.mark.parametrize(("channels", "task"), [(4, "text-to-image"), (9, "inpainting")])
def test_a_single_file_for_inpainting_is_told_by_its_unet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, task: str
) -> None:
    unet = "model.diffusion_model."
    names = {
        f"{unet}input_blocks.0.0.weight": torch.zeros(320, channels, 3, 3),
        f"{unet}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, 768),
    }
    save_file(names, tmp_path / "model.safetensors")
    opened: list[str] = []
    for cls in classes().values():
        monkeypatch.setattr(cls, "from_single_file", classmethod(lambda cls, *_, **__: opened.append(cls.__name__)))
    open_pipeline(tmp_path / "model.safetensors")
    open_pipeline(tmp_path / "model.safetensors", task="image-to-image")
    assert opened == [TASKS[task][0], "StableDiffusionImg2ImgPipeline"]
