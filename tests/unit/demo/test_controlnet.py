"""The packaged model's ControlNet: small, and what is drawn stands where its picture has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tools.demo_world.scenes import Scene, description_of, sample_scene
from tools.train_adapter import pictures
from tools.train_controlnet import silhouettes
from typer.testing import CliRunner

from leandiffusion import ControlNetModel, StableDiffusionControlNetPipeline
from leandiffusion.cli.app import app
from leandiffusion.demo import DEFAULTS, controlnets, packaged_controlnet

SCENES = 8


@pytest.fixture(scope="module")
def pipe() -> Any:
    net = ControlNetModel.from_pretrained(controlnets()["silhouette"])
    pipe = StableDiffusionControlNetPipeline.from_pretrained("demo", controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small_and_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = controlnets()["silhouette"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    assert packaged_controlnet("silhouette") == str(folder)
    assert packaged_controlnet("./else") == "./else"
    monkeypatch.chdir(tmp_path)
    Path("silhouette").mkdir()
    assert packaged_controlnet("silhouette") == "silhouette"


def test_shapes_stand_where_the_picture_has_them(pipe: Any) -> None:
    """Of scenes with two shapes that were not trained with: what is drawn covers what the picture shows in white, seven
    tenths of both together at least. Without it the shapes stand anywhere."""
    rng = np.random.default_rng(9)
    scenes = [sample_scene(rng, split="held_out", pair_probability=1.0) for _ in range(SCENES)]
    seen = pictures([silhouettes(scene) for scene in scenes])
    along, without = (drawn(pipe, scenes, seen, scale) for scale in (1.0, 0.0))
    assert np.mean(along) > 0.7
    assert np.mean(without) < 0.45


def drawn(pipe: Any, scenes: list[Scene], seen: torch.Tensor, scale: float) -> list[float]:
    """Of each picture the overlap of shapes and white, over both together."""
    images = pipe(
        [description_of(scene).prompt for scene in scenes], image=seen, output_type="np",
        controlnet_conditioning_scale=scale, generator=[torch.Generator().manual_seed(i) for i in range(SCENES)],
        num_inference_steps=DEFAULTS["steps"], guidance_scale=DEFAULTS["guidance_scale"],
    ).images  # fmt: skip
    found = []
    for image, white in zip(images, seen[:, 0].numpy() > 0.5, strict=True):
        background = np.median(image[~white], axis=0)
        shown = np.abs(image - background).max(-1) > 0.25
        found.append(float((shown & white).sum() / (shown | white).sum()))
    return found


def test_by_name_on_the_command_line(tmp_path: Path) -> None:
    seen = Image.new("RGB", (128, 128))
    seen.paste("white", (40, 40, 90, 90))
    seen.save(tmp_path / "seen.png")
    out = tmp_path / "drawn.png"
    done = CliRunner().invoke(
        app,
        ["generate", "a red square on a blue background", "--controlnet", "silhouette:0.9", "--control-image",
         str(tmp_path / "seen.png"), "--steps", "2", "--out", str(out)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert out.exists()
