"""UNets saved by a diffusers before 0.9 that say a `sample_size` below 64: both libraries draw at 64 latents a side.

Shapes are compared, not numbers, so there is no tolerance.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import leandiffusion

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Tiny = Callable[[str], tuple[Any, Path]]


def written_by(folder: Path, version: Any, size: Any, target: Path) -> Path:
    """A copy of the pipeline folder whose UNet says that this version of diffusers wrote it, and this size."""
    shutil.copytree(folder, target)
    path = target / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_diffusers_version": version, "sample_size": size}))
    return target


def open_with(library: Any, folder: Path) -> tuple[Any, bool]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pipe = library.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe, any("sample_size" in str(warning.message) for warning in seen)


@pytest.mark.parametrize(
    ("version", "size"),
    [("0.6.0", 32), ("0.8.1", 8), ("0.9.0.dev0", 8), ("0.9.0", 8), ("0.30.0", 8), ("0.6.0", 64), ("0.6.0", [8, 9])],
)
def test_the_size_is_mended_as_diffusers_does(tiny: Tiny, version: str, size: Any, tmp_path: Path) -> None:
    folder = written_by(tiny("sd1")[1], version, size, tmp_path / "old")
    (theirs, _), (ours, warned) = (open_with(library, folder) for library in (diffusers, leandiffusion))
    assert ours.unet.config.sample_size == theirs.unet.config.sample_size
    assert warned is (ours.unet.config.sample_size != size)


def test_pictures_have_that_size_and_saving_keeps_it(tiny: Tiny, tmp_path: Path) -> None:
    folder = written_by(tiny("sd1")[1], "0.4.0", 8, tmp_path / "old")
    theirs, ours = (open_with(library, folder)[0] for library in (diffusers, leandiffusion))
    shapes = [pipe("a cat", num_inference_steps=1, output_type="latent").images.shape for pipe in (theirs, ours)]
    assert shapes == [(1, 4, 64, 64)] * 2
    ours.save_pretrained(tmp_path / "new")
    again, warned = open_with(leandiffusion, tmp_path / "new")
    assert again.unet.config.sample_size == 64
    assert not warned


def test_a_unet_of_diffusers_is_mended_too(tiny: Tiny, tmp_path: Path) -> None:
    folder = written_by(tiny("sd1")[1], "0.4.0", 8, tmp_path / "old")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    with pytest.warns(FutureWarning, match="saved by diffusers 0.4.0, which wrote sample_size=8"):
        leandiffusion.StableDiffusionPipeline(**tiny("sd1")[0].components | {"unet": unet})
    assert unet.config.sample_size == 64
    assert unet.config.cross_attention_dim == 32


def test_sdxl_is_left_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    folder = written_by(tiny("sdxl")[1], "0.4.0", 8, tmp_path / "old")
    (theirs, _), (ours, warned) = (open_with(library, folder) for library in (diffusers, leandiffusion))
    assert ours.unet.config.sample_size == theirs.unet.config.sample_size == 8
    assert not warned


@pytest.mark.parametrize("version", [None, 4, "unknown"])
def test_a_version_that_is_none_changes_nothing(tiny: Tiny, version: Any, tmp_path: Path) -> None:
    ours, warned = open_with(leandiffusion, written_by(tiny("sd1")[1], version, 8, tmp_path / "old"))
    assert ours.unet.config.sample_size == 8
    assert not warned
