"""Latents kept on disk come back with their record, and nothing else is taken for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from leandiffusion.core.errors import ConfigError
from leandiffusion.pictures.latents import read_latents, save_latents
from leandiffusion.pictures.record import PictureRecord, Recipe

RECORD = PictureRecord(
    Recipe("demo", "a red circle", "", 3, 20, 5.0, None, 64, 48, "float32", "cpu"), sampler="DDIMScheduler"
)


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    latents = torch.randn(2, 4, 6, 8).transpose(2, 3)
    path = save_latents(latents, RECORD, tmp_path, "a-red-circle")
    found, record = read_latents(path)
    assert torch.equal(found, latents)
    assert record == RECORD
    assert path.name == "a-red-circle.latents.safetensors"
    assert save_latents(latents, RECORD, tmp_path, "a-red-circle").name == "a-red-circle-2.latents.safetensors"
    assert len(list(tmp_path.iterdir())) == 2


def test_other_files_are_refused(tmp_path: Path) -> None:
    other, broken = tmp_path / "other.safetensors", tmp_path / "broken.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    broken.write_bytes(b"no safetensors file at all")
    for path, told in ((other, "holds no latents"), (broken, "damaged")):
        with pytest.raises(ConfigError, match=told):
            read_latents(path)
    with pytest.raises(OSError, match=r"missing|No such"):
        read_latents(tmp_path / "missing.safetensors")
