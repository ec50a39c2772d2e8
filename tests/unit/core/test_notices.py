"""Warnings that carry names from outside: harmless to a terminal, short, and laid to the caller's line."""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leandiffusion import StableDiffusionPipeline, demo
from leandiffusion.core.notices import warn
from leandiffusion.modules.text import CLIPTextModel
from leandiffusion.pipelines import open_pipeline
from leandiffusion.schedulers import DDIMScheduler

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe\u2066"


def _copied(folder: Path) -> Path:
    """The demo model as a folder of that name, its networks linked."""
    folder.mkdir()
    for path in demo.model_folder().iterdir():
        if path.name in ("scheduler", "unet", "text_encoder"):
            (folder / path.name).mkdir()
            for file in path.iterdir():
                (folder / path.name / file.name).symlink_to(file)
        else:
            (folder / path.name).symlink_to(path)
    return folder


def _changed(path: Path, **values: object) -> None:
    settings = json.loads(path.read_text(encoding="utf-8")) | values
    path.unlink()
    path.write_text(json.dumps(settings), encoding="utf-8")


def _unknown_setting(folder: Path) -> None:
    _changed(folder / "scheduler" / "scheduler_config.json", **{HOSTILE: 1})
    DDIMScheduler.from_pretrained(folder / "scheduler")


def _stray_tensor(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    save_file({**tensors, HOSTILE: torch.zeros(1)}, file)
    CLIPTextModel.from_pretrained(folder / "text_encoder")


def _stray_tensor_of_a_pipeline(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    save_file({**tensors, **{f"{HOSTILE}{'x' * 500}{i}": torch.zeros(1) for i in range(4)}}, file)
    open_pipeline(folder)


def _old_writer(folder: Path) -> None:
    _changed(folder / "unet" / "config.json", _diffusers_version=f"0.8.0{HOSTILE}", sample_size=16)
    StableDiffusionPipeline.from_pretrained(folder)


def _missing_variant(folder: Path) -> None:
    stem = folder / "unet" / "diffusion_pytorch_model"
    stem.with_suffix(".safetensors").rename(stem.with_suffix(".fp16.safetensors"))
    StableDiffusionPipeline.from_pretrained(folder, variant="fp16")


KINDS = (_unknown_setting, _stray_tensor, _stray_tensor_of_a_pipeline, _old_writer, _missing_variant)


@pytest.mark.parametrize("provoke", KINDS, ids=lambda each: each.__name__.strip("_"))
def test_a_warning_about_files(provoke: Callable[[Path], None], tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        provoke(_copied(tmp_path / HOSTILE.replace("/", "")))
    assert caught
    for each in caught:
        text = str(each.message)
        assert not any((unicodedata.category(c) == "Cc" and c not in "\n\t") or c in "\u202e\u2066" for c in text)
        assert len(text) < 500
        assert each.filename == __file__


def test_through_decorators_of_torch() -> None:
    """As pipelines' calls are: what stands between is not the caller."""
    inner = torch.no_grad()(warn)
    with pytest.warns(FutureWarning, match=r"\\x1b") as caught:
        inner("\x1b[2J", FutureWarning)
    assert caught[0].filename == __file__
