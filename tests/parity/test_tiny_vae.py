"""AutoencoderTiny against diffusers' with the same random weights, in float32: 1e-5 of the largest entry, since the
same convolutions are added up in the same order or nearly so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leandiffusion import AutoencoderTiny
from leandiffusion.core.errors import BackendUnavailable, ConfigError, NotSupported, TensorMismatch
from leandiffusion.pipelines import open_pipeline

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMALL = {
    "encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4,
    "num_encoder_blocks": (1, 2, 1, 2), "num_decoder_blocks": (2, 1, 2, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    made = diffusers.AutoencoderTiny(**SMALL)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(1.5)
    path = tmp_path_factory.mktemp("tiny-vae")
    made.save_pretrained(path)
    return path


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-5 * other.abs().max())


@torch.no_grad()
def test_the_same_numbers(folder: Path) -> None:
    theirs, ours = diffusers.AutoencoderTiny.from_pretrained(folder), AutoencoderTiny.from_pretrained(folder)
    latents, pictures = 3 * torch.randn(2, 4, 6, 8), torch.rand(2, 3, 48, 64) * 2 - 1
    assert close(ours.decode(latents).sample, theirs.decode(latents).sample)
    assert close(ours.encode(pictures).latents, theirs.encode(pictures).latents)
    assert close(
        ours.unscale_latents(ours.scale_latents(latents)), theirs.unscale_latents(theirs.scale_latents(latents))
    )
    whole, expected = ours(pictures).sample, theirs(pictures).sample
    assert ((whole - expected).abs() > 1e-4).float().mean() < 0.05  # latents next to a border of 8 bits may fall apart
    plain = ours.decode(latents).sample
    ours.enable_slicing()
    assert close(ours.decode(latents).sample, plain)
    for key, value in theirs.config.items():
        if not key.startswith("_"):
            assert ours.config[key] == value or list(ours.config[key]) == list(value)


def test_saved_again_it_opens_in_diffusers(folder: Path, tmp_path: Path) -> None:
    ours = AutoencoderTiny.from_pretrained(folder)
    ours.save_pretrained(tmp_path)
    again, first = (diffusers.AutoencoderTiny.from_pretrained(each).state_dict() for each in (tmp_path, folder))
    assert all(torch.equal(again[name], weight) for name, weight in first.items())


@torch.no_grad()
def test_a_single_file_tells_what_it_is_made_of(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    ours = AutoencoderTiny.from_single_file(file)
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(ours.decode(latents).sample, AutoencoderTiny.from_pretrained(folder).decode(latents).sample)
    assert list(ours.config.num_decoder_blocks) == [2, 1, 2, 1]


def test_the_published_architecture() -> None:
    theirs, ours = diffusers.AutoencoderTiny(), AutoencoderTiny()
    shapes = {name: tuple(weight.shape) for name, weight in theirs.state_dict().items()}
    assert {name: tuple(weight.shape) for name, weight in ours.state_dict().items()} == shapes


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_as_the_vae_of_a_pipeline(
    name: str, single: bool, folder: Path, tiny: Callable[[str], tuple[Any, Path]]
) -> None:
    _, checkpoint = tiny(name)
    path = folder / "diffusion_pytorch_model.safetensors" if single else folder
    ours = open_pipeline(checkpoint, vae=str(path))
    theirs = type(tiny(name)[0]).from_pretrained(checkpoint, vae=diffusers.AutoencoderTiny.from_pretrained(folder))
    pictures = []
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(2)
        pictures.append(pipe("a red cat", num_inference_steps=3, generator=generator, output_type="pt").images)
    assert (pictures[0] - pictures[1]).abs().max() <= 1 / 255


@pytest.mark.parametrize(
    "technique",
    ["vae_slicing", "vae_tiling", "channels_last", "sequential_offload", "model_offload", "half_precision"],
)
def test_techniques_work_or_are_refused(technique: str, folder: Path, tiny: Callable[[str], tuple[Any, Path]]) -> None:
    pipe = open_pipeline(tiny("sd1")[1], vae=str(folder))
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(2)
        return pipe("a red cat", num_inference_steps=2, generator=generator, output_type="pt").images

    before = draw()
    if technique == "vae_tiling":
        assert any("AutoencoderTiny" in reason for reason in pipe.why_not(technique))
        with pytest.raises(BackendUnavailable, match="AutoencoderTiny"):
            pipe.enable(technique)
        return
    if reasons := pipe.why_not(technique):
        assert technique == "half_precision", reasons
        return
    pipe.enable(technique)
    assert (draw() - before).abs().max() < (0.1 if technique == "half_precision" else 1e-4)
    pipe.disable(technique)
    assert (draw() - before).abs().max() < 1e-5


def test_its_stages_can_be_planned(folder: Path, tiny: Callable[[str], tuple[Any, Path]]) -> None:
    from leandiffusion.plan.sketch import Blueprint, Sketch
    from leandiffusion.plan.stages import trace_stage
    from leandiffusion.run.size import CallSize

    peaks = []
    for vae in ({}, {"vae": str(folder)}):
        pipe = open_pipeline(tiny("sd1")[1], **vae)
        sketch = Sketch(Blueprint.of_networks("sd1", pipe._stack.subject.networks, torch.device("cpu")))
        peaks.append(trace_stage("decode", sketch.networks, CallSize(64, 64)).peak)
    assert all(peak > 64 * 64 * 3 * 4 for peak in peaks)


def test_what_is_refused(folder: Path, tiny: Callable[[str], tuple[Any, Path]]) -> None:
    with pytest.raises(ConfigError, match="act_fn='silu'"):
        AutoencoderTiny(act_fn="silu")
    with pytest.raises(ConfigError, match="one width for all levels"):
        AutoencoderTiny(decoder_block_out_channels=(64, 64, 32, 32))
    with pytest.raises(NotSupported, match="needs no strips"):
        AutoencoderTiny(**SMALL).enable_tiling()
    other = tiny("sd1")[1] / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(TensorMismatch, match="is a VAE, expected a tiny VAE"):
        AutoencoderTiny.from_single_file(other)
