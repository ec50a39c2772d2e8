"""`generate --controlnet`: a small random ControlNet on the packaged model, from the options to the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.parity.controlnet_files import save_controlnet
from typer.testing import CliRunner

from leandiffusion import StableDiffusionPipeline
from leandiffusion.cli.app import app
from leandiffusion.pictures.record import read_record

FEW = ("a red circle", "--steps", "2", "--seed", "5", "--size", "64")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet for the packaged model's UNet, whose contributions show."""
    return save_controlnet(tmp_path_factory.mktemp("net"), StableDiffusionPipeline.from_pretrained("demo").unet)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working folder with two pictures of edges."""
    monkeypatch.chdir(tmp_path)
    for name, box in (("edges", (4, 4, 40, 40)), ("others", (30, 10, 60, 60))):
        image = Image.new("RGB", (64, 64))
        ImageDraw.Draw(image).ellipse(box, outline="white", width=3)
        image.save(f"{name}.png")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["generate", *arguments], prog_name="leandiffusion")


def drawn(*arguments: str) -> tuple[np.ndarray, Any]:
    """Pixels and record of what was drawn."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.strip())
    with Image.open(path) as image:
        return np.asarray(image).astype(int), read_record(path)


def test_it_counts_and_is_drawn_again_from_the_record(net: Path) -> None:
    plain, _ = drawn(*FEW)
    pixels, record = drawn(*FEW, "--controlnet", f"{net}:0.9", "--control-image", "edges.png", "--out", "a.png")
    assert abs(pixels - plain).max() > 8
    assert record.recipe.controlnet == (f"{net}:0.9",)
    assert record.recipe.control_image == ("edges.png",)
    assert set(record.inputs) == {"control_image edges.png"}
    again, _ = drawn("--like", "a.png")
    assert np.array_equal(again, pixels)
    without, _ = drawn(*FEW, "--controlnet", f"{net}:0", "--control-image", "edges.png")
    assert abs(without - plain).max() <= 1


def test_another_picture_under_the_same_name_is_told(net: Path) -> None:
    drawn(*FEW, "--controlnet", str(net), "--control-image", "edges.png", "--out", "a.png")
    Image.new("RGB", (64, 64), "green").save("edges.png")
    result = run("--like", "a.png")
    assert result.exit_code == 0, result.output
    assert "edges.png is not the control image that the picture was drawn with any more" in result.stderr


def test_two_of_them_on_a_picture(net: Path) -> None:
    two = ("--controlnet", f"{net}:0.5", "--control-image", "edges.png")
    two += ("--controlnet", str(net), "--control-image", "others.png")
    pixels, record = drawn(*FEW, *two, "--image", "edges.png", "--strength", "0.9")
    assert len(record.recipe.controlnet) == 2
    swapped, _ = drawn(*FEW, *two[4:], *two[:4], "--image", "edges.png", "--strength", "0.9")
    alone, _ = drawn(*FEW, *two[:4], "--image", "edges.png", "--strength", "0.9")
    assert abs(pixels - swapped).max() <= 1
    assert abs(pixels - alone).max() > 4


def test_shares_of_the_steps(net: Path) -> None:
    one = ("--controlnet", str(net), "--control-image", "edges.png")
    whole, _ = drawn(*FEW, *one)
    half, record = drawn(*FEW, *one, "--control-end", "0.5")
    assert abs(whole - half).max() > 2
    assert record.recipe.control_guidance_end == 0.5


def test_what_cannot_be_followed(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ("--controlnet", str(net), "--control-image", "edges.png")
    cases = [
        (("--controlnet", str(net)), "1 --controlnet and 0 --control-image"),
        (("--control-image", "edges.png"), "0 --controlnet and 1 --control-image"),
        (("--guess-mode",), "belongs to --controlnet"),
        ((*one, "--control-start", "1.5"), "1.5 is not a share of the steps"),
        ((*one, "--control-start", "0.6", "--control-end", "0.5"), "count in no step"),
        (("--controlnet", str(net), "--control-image", "absent.png"), "no such file"),
        (("--controlnet", f"{net}:nan", "--control-image", "edges.png"), "nan is not how much it weighs"),
    ]
    monkeypatch.setattr("leandiffusion.cli.generate.open_model", None)
    for arguments, told in cases:
        result = run(*FEW, *arguments)
        words = " ".join(result.output.replace("│", " ").split())
        assert result.exit_code == 2, (arguments, words)
        assert told in words, words


def test_a_folder_that_is_no_controlnet_is_told(tmp_path: Path) -> None:
    result = run(*FEW, "--controlnet", str(tmp_path), "--control-image", "edges.png")
    assert result.exit_code == 1
    assert "config.json" in result.output
