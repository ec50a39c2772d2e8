"""Whole pipelines: opening reads no weights, later calls say how they are read, and drawing reads what it runs."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leandiffusion import StableDiffusionPipeline, StableDiffusionXLPipeline, WeightsError
from leandiffusion.pipelines import open_pipeline
from leandiffusion.weights import read
from leandiffusion.weights.residence import is_waiting
from leandiffusion.weights.stored import StoredTensor

Draw = Callable[..., torch.Tensor]
Folders = dict[str, Path]
NETWORKS = ("text_encoder", "unet", "vae")


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of tensors that were read, one number per piece."""
    counted: list[int] = []
    fill = read._fill
    monkeypatch.setattr(
        read, "_fill", lambda stream, chunk, *rest: (counted.append(chunk.nbytes), fill(stream, chunk, *rest))
    )
    return counted


def waiting(pipe: Any) -> list[str]:
    return [name for name in NETWORKS if is_waiting(pipe.components[name])]


def sizes(pipe: Any, *names: str) -> int:
    """Bytes of those networks' weights, without the VAE's encoder, which drawing does not run."""
    parameters = (p for name in names for p in pipe.components[name].named_parameters())
    return sum(p.numel() * 4 for name, p in parameters if not name.startswith(("encoder.", "quant_conv.")))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    "options",
    [{}, {"torch_dtype": torch.bfloat16}, {"device_map": "cpu"}, {"device": "cpu"}, {"low_cpu_mem_usage": False}],
    ids=str,
)
def test_opening_reads_nothing(folders: Folders, family: str, options: dict[str, Any], bytes_read: list[int]) -> None:
    pipe: Any = open_pipeline(folders[family], **options)
    pipe.to("cpu").enable_attention_slicing()
    pipe.enable_vae_tiling()
    pipe.enable_channels_last()
    assert pipe.dtype == options.get("torch_dtype", torch.float32)
    assert bytes_read == []
    assert waiting(pipe) == list(NETWORKS)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_call_reads_what_it_runs_once(
    folders: Folders, build: Any, draw: Draw, family: str, bytes_read: list[int]
) -> None:
    pipe, expected = build["quiet"](open_pipeline(folders[family])), draw(build[family]())
    second = ("text_encoder_2",) if family == "sdxl" else ()
    assert torch.equal(draw(pipe), expected)
    assert sum(bytes_read) == sizes(pipe, *NETWORKS, *second)
    assert waiting(pipe) == []
    assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(type(pipe).from_pipe(pipe)), expected)
    assert sum(bytes_read) == sizes(pipe, *NETWORKS, *second)


def test_what_a_call_does_not_run_is_not_read(folders: Folders, build: Any, draw: Draw) -> None:
    pipe: Any = build["quiet"](open_pipeline(folders["sd1"]))
    embeddings = pipe.encode_prompt("a cat", "cpu", 1, True)
    assert waiting(pipe) == ["unet", "vae"]
    pipe = build["quiet"](open_pipeline(folders["sd1"]))
    draw(pipe, prompt_embeds=embeddings[0], negative_prompt_embeds=embeddings[1], output_type="latent")
    assert waiting(pipe) == ["text_encoder", "vae"]


@pytest.mark.parametrize("offload", ["model_offload", "sequential_offload"])
def test_offloading_that_comes_after_opening_reads_nothing_either(
    folders: Folders, build: Any, draw: Draw, offload: str, bytes_read: list[int]
) -> None:
    """But for the little that inner modules hold themselves; and it draws the same."""
    pipe: Any = build["quiet"](open_pipeline(folders["sd1"]))
    pipe.enable(offload)
    assert sum(bytes_read) < 0.01 * sizes(pipe, *NETWORKS)
    assert torch.equal(draw(pipe), draw(build["sd1"]()))
    assert all(isinstance(p, StoredTensor) for p in pipe.unet.parameters())
    pipe.disable(offload)
    assert torch.equal(draw(pipe), draw(build["sd1"]()))


def test_half_precision_that_comes_after_opening_is_how_weights_are_read(
    folders: Folders, build: Any, draw: Draw, bytes_read: list[int]
) -> None:
    pipe: Any = build["quiet"](open_pipeline(folders["sd1"]))
    pipe.enable("half_precision", dtype=torch.bfloat16)
    assert bytes_read == []
    assert torch.equal(draw(pipe), draw(build["quiet"](open_pipeline(folders["sd1"], dtype=torch.bfloat16))))
    pipe.disable("half_precision")
    assert torch.equal(draw(pipe), draw(build["sd1"]()))


def test_half_precision_switched_off_again_before_anything_was_read(
    folders: Folders, build: Any, draw: Draw, bytes_read: list[int]
) -> None:
    pipe: Any = build["quiet"](open_pipeline(folders["sd1"]))
    pipe.enable("half_precision", dtype=torch.bfloat16)
    pipe.disable("half_precision")
    assert bytes_read == []
    assert torch.equal(draw(pipe), draw(build["sd1"]()))


def test_a_temporary_folder_may_be_gone_by_then(build: Any, draw: Draw) -> None:
    with tempfile.TemporaryDirectory() as folder:
        build["sd1"]().save_pretrained(folder)
        plain, travels = (build["quiet"](open_pipeline(folder)) for _ in range(2))
    travels.enable_sequential_cpu_offload()
    assert torch.equal(draw(plain), draw(build["sd1"]()))
    assert torch.equal(draw(travels), draw(build["sd1"]()))


def test_a_file_that_is_damaged_by_then_is_refused_before_the_first_step(
    build: Any, draw: Draw, tmp_path: Path
) -> None:
    build["sd1"]().save_pretrained(tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    whole, status = file.read_bytes(), file.stat()
    pipe: Any = build["quiet"](open_pipeline(tmp_path))
    os.truncate(file, len(whole) // 2)
    steps: list[int] = []

    def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return tensors

    with pytest.raises(WeightsError, match=r"vae/diffusion_pytorch_model\.safetensors was changed"):
        draw(pipe, callback_on_step_end=count)
    assert steps == []
    file.write_bytes(whole)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert torch.equal(draw(pipe), draw(build["sd1"]()))


def test_a_copy_of_a_pipeline_reads_for_itself(folders: Folders, build: Any, draw: Draw) -> None:
    pipe: Any = build["quiet"](open_pipeline(folders["sd1"]))
    twin = copy.deepcopy(pipe)
    assert torch.equal(draw(twin), draw(build["sd1"]()))
    assert waiting(twin) == []
    assert waiting(pipe) == list(NETWORKS)


@pytest.mark.parametrize("cls", [StableDiffusionPipeline, StableDiffusionXLPipeline])
def test_the_class_itself_opens_so_too(folders: Folders, cls: Any, bytes_read: list[int]) -> None:
    cls.from_pretrained(folders["sdxl" if cls is StableDiffusionXLPipeline else "sd1"])
    assert bytes_read == []
