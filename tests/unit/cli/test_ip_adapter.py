"""`generate --ip-adapter`: refused before a model opens, in the record with hashes, and drawn again from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.parity import ip_adapter_files as files
from typer.testing import CliRunner

from leandiffusion import StableDiffusionPipeline
from leandiffusion.cli.app import app
from leandiffusion.pictures.reading import sha256
from leandiffusion.pictures.record import read_record

QUICK = ["--steps", "2", "--size", "64x64", "--seed", "3"]


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, color in (("a", "orange"), ("b", "navy")):
        Image.new("RGB", (40, 30), color).save(f"{name}.png")
    return files.save_adapter(tmp_path, StableDiffusionPipeline.from_pretrained("demo").unet, gain=2.0)


def generate(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["generate", "a red circle", *QUICK, *arguments])


def test_it_is_in_the_record_and_drawn_again(adapter: Path) -> None:
    for number, image in enumerate(("a.png:0.6", "b.png:0.6", "a.png")):
        result = generate("--ip-adapter", str(adapter), "--ip-image", image, "--out", f"{number}.png")
        assert result.exit_code == 0, result.output
    pixels = [Image.open(f"{number}.png").tobytes() for number in range(3)]
    assert len({*pixels}) == 3
    record = read_record(Path("0.png"))
    assert (record.recipe.ip_adapter, record.recipe.ip_image) == ((str(adapter),), ("a.png:0.6",))
    assert record.inputs[f"ip_adapter {adapter}"] == sha256(adapter)
    assert record.inputs["ip_image a.png"] == sha256(Path("a.png"))
    assert record.seconds["image"] > 0
    result = generate("--like", "0.png", "--out", "again.png")
    assert result.exit_code == 0, result.output
    assert Image.open("again.png").tobytes() == pixels[0]


def test_what_is_wrong_is_told_by_its_option(adapter: Path) -> None:
    save_file({"odd.thing": torch.zeros(1)}, "odd.safetensors")
    Path("ip.bin").write_bytes(b"x")
    cases = [
        (["--ip-adapter", str(adapter)], "give a picture for each"),
        (["--ip-image", "a.png"], "give a picture for each"),
        (["--ip-adapter", "odd.safetensors", "--ip-image", "a.png"], "no IP-Adapter"),
        (["--ip-adapter", "ip.bin", "--ip-image", "a.png"], "is a pickle"),
        (["--ip-adapter", str(adapter), "--ip-image", "none.png"], "none.png"),
    ]
    for arguments, told in cases:
        result = generate(*arguments)
        assert result.exit_code == 2
        assert told in " ".join(result.output.replace("│", " ").split())
