"""`generate --lora`: taken apart, refused before a model opens, in the record, and drawn again from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.parity import lora_files as files
from typer.testing import CliRunner

from leandiffusion import StableDiffusionPipeline
from leandiffusion.cli.app import app
from leandiffusion.drawing.lora import path_and_scale
from leandiffusion.pictures.record import read_record

QUICK = ["--steps", "2", "--size", "64x64", "--seed", "3"]


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("x.safetensors", "x.safetensors", 1.0),
        ("x.safetensors:0.8", "x.safetensors", 0.8),
        ("x.safetensors:-1", "x.safetensors", -1.0),
        (r"C:\loras\x.safetensors", r"C:\loras\x.safetensors", 1.0),
        (r"C:\loras\x.safetensors:0.5", r"C:\loras\x.safetensors", 0.5),
        ("owner/name:0.5", "owner/name", 0.5),
    ],
)
def test_paths_and_scales(text: str, path: str, scale: float) -> None:
    assert path_and_scale(text) == (path, scale)


def test_a_file_whose_name_ends_in_a_number(tmp_path: Path) -> None:
    file = tmp_path / "x:2"
    file.touch()
    assert path_and_scale(str(file)) == (str(file), 1.0)
    assert path_and_scale(f"{file}:2") == (str(file), 2.0)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    save_file(files.kohya("lora_unet", pipe.unet, which=files.EVERYTHING), tmp_path / "any.safetensors")
    return tmp_path / "any.safetensors"


def generate(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["generate", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_it_is_in_the_record_and_drawn_again(lora: Path, tmp_path: Path) -> None:
    plain, with_it, again, weaker = (tmp_path / f"{i}.png" for i in range(4))
    generate("a red circle", *QUICK, "--out", str(plain))
    generate("a red circle", *QUICK, "--lora", f"{lora}:0.8", "--out", str(with_it))
    record = read_record(with_it)
    assert record.recipe.lora == (f"{lora}:0.8",)
    assert len(record.inputs[f"lora {lora}"]) == 64
    assert read_record(plain).recipe.lora == ()
    generate("--like", str(with_it), "--out", str(again))
    generate("--like", str(with_it), "--lora", f"{lora}:0.4", "--out", str(weaker))
    pictures = [pixels(path) for path in (plain, with_it, again, weaker)]
    assert pictures[1] == pictures[2]
    assert len({*pictures}) == 3


def pixels(path: Path) -> bytes:
    from PIL import Image

    return Image.open(path).tobytes()


def test_another_file_of_that_name_is_noticed(lora: Path, tmp_path: Path) -> None:
    generate("a red circle", *QUICK, "--lora", str(lora), "--out", str(tmp_path / "1.png"))
    unet = StableDiffusionPipeline.from_pretrained("demo").unet
    save_file(files.kohya("lora_unet", unet, seed=9, which=files.EVERYTHING), lora)
    assert "is not the LoRA" in generate("--like", str(tmp_path / "1.png"), "--out", str(tmp_path / "2.png"))


def test_what_is_no_lora_is_refused_before_a_model_opens(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leandiffusion.pipelines.open_pipeline", None)  # opening would fail
    save_file({"model.diffusion_model.out.0.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "x.ckpt").write_bytes(b"")
    for given, said in {
        str(tmp_path / "model.safetensors"): "whole checkpoint",
        str(tmp_path / "x.ckpt"): "pickle",
        str(tmp_path / "nothing.safetensors"): "does not exist",
        f"{lora}:inf": "how much it weighs",
    }.items():
        result = CliRunner().invoke(app, ["generate", "a red circle", *QUICK, "--lora", given])
        assert result.exit_code == 2
        assert said in " ".join(result.output.replace("│", " ").split())


def test_one_for_another_model_ends_before_drawing(tmp_path: Path) -> None:
    state = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.zeros(4, 2048)}
    state["lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight"] = torch.zeros(640, 4)
    save_file(state, tmp_path / "sdxl.safetensors")
    result = CliRunner().invoke(app, ["generate", "a red circle", *QUICK, "--lora", str(tmp_path / "sdxl.safetensors")])
    assert result.exit_code == 1
    assert "Stable Diffusion XL" in " ".join(result.output.split())
    assert "Drawing with" not in result.output
