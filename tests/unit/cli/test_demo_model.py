"""The command as a person runs it: a fresh process, the packaged model, real drawing."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from leandiffusion import StableDiffusionImg2ImgPipeline
from leandiffusion.pictures.record import read_record

MODEL = files("leandiffusion") / "demo" / "model" / "model_index.json"
pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="this checkout carries no packaged model")


def leandiffusion(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leandiffusion", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_demo_draws_and_its_picture_can_be_drawn_again(tmp_path):
    shown = leandiffusion(tmp_path, "demo")
    assert shown.returncode == 0, shown.stderr
    path = tmp_path / shown.stdout.strip()
    for stage in ("load", "encode", "denoise", "decode", "peak memory"):
        assert stage in shown.stderr
    again = leandiffusion(tmp_path, "generate", "--like", str(path), "--out", "again.png")
    assert again.returncode == 0, again.stderr
    assert pixels(tmp_path / "again.png") == pixels(path)  # bit for bit, from another process
    assert read_record(tmp_path / "again.png").recipe == read_record(path).recipe


def test_words_and_seed_decide_and_one_of_several_equals_it_alone(tmp_path):
    prompt = "a blue square on a white background"
    several = leandiffusion(tmp_path, "generate", prompt, *"--steps 2 --seed 5 --count 2 --out s.png".split())
    assert several.returncode == 0, several.stderr
    alone = leandiffusion(tmp_path, "generate", prompt, *"--steps 2 --seed 6 --out alone.png".split())
    assert alone.returncode == 0, alone.stderr
    assert pixels(tmp_path / "alone.png") == pixels(tmp_path / "s-2.png") != pixels(tmp_path / "s-1.png")


def test_words_it_never_learned_are_drawn_with_a_notice(tmp_path):
    result = leandiffusion(tmp_path, "generate", "a zebra riding a bicycle", "--steps", "1", "--out", "zebra.png")
    assert result.returncode == 0, result.stderr
    assert "Note:" in result.stderr
    assert (tmp_path / "zebra.png").exists()


def test_a_model_saved_for_pictures_is_wrong_usage_without_them(tmp_path):
    StableDiffusionImg2ImgPipeline.from_pretrained("demo").save_pretrained(tmp_path / "mine")
    result = leandiffusion(tmp_path, "generate", "a red circle", "--model", "mine", "--steps", "1")
    assert result.returncode == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert "Invalid value for --model: mine is a StableDiffusionImg2ImgPipeline" in said
    assert "give it --image too" in said
    assert "Drawing with" not in said


def test_what_the_model_refuses_comes_before_the_seed(tmp_path):
    result = leandiffusion(tmp_path, "generate", "a red circle", "--steps", "2000")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: num_inference_steps=2000")
