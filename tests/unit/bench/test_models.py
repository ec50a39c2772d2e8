"""The models that a run draws with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from leandiffusion import StableDiffusionPipeline
from leandiffusion.bench.run import models
from leandiffusion.bench.run.flops import count_flops_of
from leandiffusion.bench.run.models import find_model, shape_of, write_random_checkpoint
from leandiffusion.core.errors import CheckpointNotFound, ConfigError
from leandiffusion.families.base import families

TINY = {
    "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "unet": {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 4},
    "vae": {"block_out_channels": (32, 32, 64, 64)},
}


def tiny(name: str = "sd1") -> Any:
    family = families.get(name)
    for part, changes in TINY.items():
        family = family.with_config(part, **changes)
    return family


def test_a_random_checkpoint_opens_and_draws_ordinary_numbers(tmp_path: Path) -> None:
    write_random_checkpoint(tiny(), tmp_path / "a", torch.bfloat16)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "a")
    pipe.set_progress_bar_config(disable=True)
    latents = pipe("x", width=64, height=64, num_inference_steps=2, output_type="latent").images
    assert torch.isfinite(latents).all()
    prediction = pipe.unet(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 77, 32)).sample
    assert 0.05 < prediction.std() < 20  # neither vanishing nor exploding


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    for name in "ab":
        write_random_checkpoint(tiny(), tmp_path / name, torch.bfloat16)
    file = Path("unet", "diffusion_pytorch_model.safetensors")
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_shape_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(models, "shape_of", lambda name: tiny())
    write = models.write_random_checkpoint
    monkeypatch.setattr(models, "write_random_checkpoint", lambda *a, **k: (made.append(1), write(*a, **k)))
    first, second = find_model("shape:sd15", tmp_path), find_model("shape:sd15", tmp_path)
    assert first == second
    assert first["size"] == 512
    assert len(made) == 1


def test_models_are_found(tmp_path: Path) -> None:
    assert find_model("demo", tmp_path)["size"] == 128
    with pytest.raises(CheckpointNotFound):
        find_model(str(tmp_path / "nothing"), tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'shape:sdxl'"):
        shape_of("shape:sdx")


@pytest.mark.parametrize(
    ("block", "context", "marks", "size"),
    [
        ("input_blocks.2.1", 768, {}, 512),
        ("input_blocks.2.1", 1024, {"v_pred": torch.ones(1)}, 768),
        ("input_blocks.2.1", 1024, {"global_step": torch.tensor(875_000)}, 512),  # the 512 px model of SD2
        ("input_blocks.4.1", 2048, {}, 1024),
    ],
    ids=["sd1", "sd2", "sd2-base", "sdxl"],
)
def test_a_single_file_draws_at_the_size_of_its_family(
    block: str, context: int, marks: dict[str, torch.Tensor], size: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    unet = "model.diffusion_model."
    attention = {f"{unet}{block}.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, context)}
    save_file({f"{unet}input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3), **attention, **marks}, path)
    assert find_model(str(path), tmp_path) == {"checkpoint": str(path), "size": size}
    if size == 512 and not marks:
        assert count_flops_of(path, 256, 1)["step"] == pytest.approx(0.360e12, rel=0.03)  # as of the folder


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(models.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ConfigError, match="--work"):
        write_random_checkpoint(tiny(), tmp_path / "a", torch.bfloat16)
    assert list(tmp_path.iterdir()) == []


def test_what_is_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "write_json", stop)  # the last file of all
    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint(tiny(), tmp_path / "a", torch.bfloat16)
    assert list(tmp_path.iterdir()) == []
