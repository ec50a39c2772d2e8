from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leandiffusion.bench.run.flops import count_flops_of
from leandiffusion.core.config import write_json
from leandiffusion.demo import model_folder
from leandiffusion.families.base import families


def _configs(family: str, folder: Path, **unet: Any) -> Path:
    """The family's JSON files, without any weights."""
    found = families.get(family).with_config("unet", **unet)
    for name, part in found.networks.items():
        (folder / name).mkdir(parents=True)
        write_json(folder / name / "config.json", part.config)
    index = {name: ["diffusers", part.class_name] for name, part in found.networks.items()}
    write_json(folder / "model_index.json", {"_class_name": found.pipeline, **index})
    return folder


def test_stable_diffusion_1_takes_what_was_counted_before(tmp_path: Path) -> None:
    """Within 3%: figures of another tool, which counted norms and activations too and gave three digits."""
    folder = _configs("sd1", tmp_path)
    small, usual = (count_flops_of(folder, size, 1) for size in (256, 512))
    assert small["step"] == pytest.approx(0.360e12, rel=0.03)
    assert usual["step"] == pytest.approx(1.607e12, rel=0.03)
    assert usual["decode"] == pytest.approx(2.51e12, rel=0.03)


def test_a_batch_takes_as_much_more(tmp_path: Path) -> None:
    """Each picture's part is the same, the timestep's few layers included."""
    folder = _configs("sd1", tmp_path)
    one, three = (count_flops_of(folder, 256, batch) for batch in (1, 3))
    assert three == {name: 3 * count for name, count in one.items()}


def test_sdxl_gets_its_sizes_and_pooled_text(tmp_path: Path) -> None:
    """Its two layers for them, 2816 -> 1280 -> 1280, are the whole difference to the same network without."""
    counts = [
        count_flops_of(_configs("sdxl", tmp_path / str(added), addition_embed_type=added), 256, 1)["step"]
        for added in ("text_time", None)
    ]
    assert counts[0] - counts[1] == 2 * 2 * (2816 * 1280 + 1280 * 1280)


def test_a_distilled_network_is_called_once_per_step(tmp_path: Path) -> None:
    """Half, but for the guidance embedding: far less than a thousandth."""
    plain = count_flops_of(_configs("sd1", tmp_path / "plain"), 256, 1)["step"]
    distilled = count_flops_of(_configs("sd1", tmp_path / "distilled", time_cond_proj_dim=256), 256, 1)["step"]
    assert distilled == pytest.approx(plain / 2, rel=1e-3)


def test_what_is_no_folder_of_ours_has_no_count(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    foreign = _configs("sd1", tmp_path / "foreign", time_embedding_type="fourier")
    partial = _configs("sd1", tmp_path / "partial")
    (partial / "vae" / "config.json").unlink()
    for folder in (file, tmp_path / "missing", tmp_path, foreign, partial):
        assert count_flops_of(folder, 256, 1) == {}


def test_the_packaged_model_has_a_count() -> None:
    assert set(count_flops_of(model_folder(), 128, 1)) == {"step", "decode"}
