"""`generate --image` and `--mask`: the packaged model on pictures as people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from leandiffusion.cli.app import app
from leandiffusion.pictures.reading import sha256
from leandiffusion.pictures.record import read_record

PROMPT = "a large yellow circle on a blue background"
FEW = ("--steps", "3", "--seed", "5")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working folder with a photo, 300x200, and a mask of its left half."""
    monkeypatch.chdir(tmp_path)
    photo = Image.new("RGB", (300, 200), (30, 80, 220))
    ImageDraw.Draw(photo).ellipse((170, 60, 250, 140), fill=(230, 40, 30))
    photo.save("photo.jpg", quality=95)
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, 150, 200))
    mask.save("mask.png")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["generate", *arguments], prog_name="leandiffusion")


def drawn(*arguments: str) -> tuple[np.ndarray, Any]:
    """Pixels and record of what was drawn."""
    result = run(PROMPT, *FEW, *arguments)
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.strip())
    with Image.open(path) as image:
        return np.asarray(image).astype(int), read_record(path)


def test_a_picture_is_drawn_anew_in_its_own_shape_and_the_record_knows_it() -> None:
    pixels, record = drawn("--image", "photo.jpg", "--strength", "0.4")
    assert pixels.shape == (88, 128, 3)  # 300x200 in the model's 128x128, in multiples of 8
    recipe = record.recipe
    assert (recipe.image, recipe.mask, recipe.strength, recipe.width, recipe.height) == (
        "photo.jpg",
        None,
        0.4,
        128,
        88,
    )
    assert record.inputs == {"image": sha256("photo.jpg")}
    assert "Denoising strength: 0.4" in record.to_a1111()
    assert "picture" in record.seconds
    again, _ = drawn("--like", "outputs/0001-a-large-yellow-circle-on-a-blue-background.png")
    assert np.array_equal(pixels, again)
    other, _ = drawn("--image", "photo.jpg", "--strength", "1")
    assert abs(other - pixels).max() > 16


def test_only_what_the_mask_covers_is_drawn() -> None:
    pixels, record = drawn("--image", "photo.jpg", "--mask", "mask.png", "--resize", "stretch")
    assert pixels.shape == (128, 128, 3)
    assert (record.recipe.mask, record.recipe.strength) == ("mask.png", 1.0)
    assert set(record.inputs) == {"image", "mask"}
    with Image.open("photo.jpg") as photo:
        kept = np.asarray(photo.resize((128, 128), Image.Resampling.LANCZOS)).astype(int)
    right = abs(pixels - kept)[:, 80:].mean()
    assert right < 12 < abs(pixels - kept)[:, :56].mean()  # the VAE itself changes a little


def test_around_the_mask_at_full_size() -> None:
    hole = Image.new("RGBA", (300, 200), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (100, 60, 160, 120))  # transparent: draw there
    hole.save("hole.png")
    pixels, record = drawn("--image", "photo.jpg", "--mask", "hole.png", "--padding-mask-crop", "16")
    assert pixels.shape == (200, 300, 3)
    with Image.open("photo.jpg") as photo:
        kept = np.asarray(photo).astype(int)
    assert abs(pixels - kept)[:, 200:].max() <= 1
    assert abs(pixels - kept)[60:120, 100:160].mean() > 12
    assert record.recipe.padding_mask_crop == 16


@pytest.mark.parametrize("how", ["fill", "stretch"])
def test_exactly_the_size_that_is_asked_for(how: str) -> None:
    pixels, record = drawn("--image", "photo.jpg", "--size", "64x96", "--resize", how)
    assert pixels.shape == (96, 64, 3)
    assert (record.recipe.resize, record.recipe.width) == (how, 64)


def test_another_picture_under_the_same_name_is_told() -> None:
    drawn("--image", "photo.jpg", "--out", "first.png")
    Image.new("RGB", (300, 200), "green").save("photo.jpg")
    result = run("--like", "first.png", *FEW)
    assert result.exit_code == 0
    assert "photo.jpg is not the image that the picture was drawn with any more" in result.stderr


def test_what_cannot_be_followed_is_told_before_a_model_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leandiffusion.cli.generate.open_model", None)
    Image.new("L", (30, 20)).save("small.png")
    Image.new("L", (300, 200)).save("black.png")
    Path("broken.jpg").write_bytes(Path("photo.jpg").read_bytes()[:2000])
    cases = [
        (("--strength", "0.5"), "--strength", "belongs to --image"),
        (("--mask", "mask.png"), "--mask", "belongs to --image"),
        (("--image", "photo.jpg", "--padding-mask-crop", "8"), "--padding-mask-crop", "belongs to --mask"),
        (("--image", "photo.jpg", "--strength", "0"), "--strength", "above 0 and up to 1"),
        (("--image", "photo.jpg", "--strength", "1.5"), "--strength", "above 0 and up to 1"),
        (("--image", "photo.jpg", "--strength", "0.3", "--steps", "3"), "--strength", "raise it to 0.34 or more"),
        (("--image", "photo.jpg", "--resize", "crop"), "--resize", "none of fit, fill, stretch"),
        (("--image", "photo.jpg", "--mask", "small.png"), "--mask", "30x20 and the picture 300x200"),
        (("--image", "absent.png"), "--image", "no such file"),
        (("--image", "broken.jpg"), "--image", "Is it whole"),
        (("--image", "photo.jpg", "--mask", "broken.jpg"), "--mask", "Is it whole"),
        (("--image", "photo.jpg", "--mask", "black.png", "--padding-mask-crop", "8"), "--mask", "it is all black"),
    ]
    for arguments, flag, told in cases:
        result = run(PROMPT, *arguments)
        words = " ".join(result.output.replace("│", " ").split())
        assert result.exit_code == 2, (arguments, words)
        assert flag in words, words
        assert told in words, words
    assert not Path("outputs").exists()
