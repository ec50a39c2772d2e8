"""Every technique with a LoRA on: the picture that there is without the technique, no trace of either afterwards."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.contract.common import USABLE, Draw, enable, state
from tests.contract.test_one_technique import check_parity
from tests.parity import lora_files as files

from leandiffusion import ConfigError, StableDiffusionPipeline

each = pytest.mark.parametrize("name", USABLE)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of all layers of the UNet and of the text encoder, in kohya's layout."""
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    factors = files.kohya("lora_unet", pipe.unet, which=files.EVERYTHING, alpha=3.0)
    factors |= files.kohya("lora_te", pipe.text_encoder, seed=1, alpha=3.0)
    place = tmp_path_factory.mktemp("lora") / "any.safetensors"
    save_file(factors, place)
    return place


@pytest.fixture(scope="module")
def with_lora(path: Path, draw: Draw, plain: np.ndarray) -> np.ndarray:
    """What the packaged model draws with the adapter, and nothing else on."""
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(path, adapter_name="any")
    picture = draw(pipe)
    assert np.abs(picture - plain).max() > 0.1
    return picture


@each
def test_a_technique_comes_to_a_lora_and_goes(
    name: str, pipe: Any, path: Path, draw: Draw, plain: np.ndarray, with_lora: np.ndarray
) -> None:
    before = state(pipe)
    pipe.load_lora_weights(path, adapter_name="any")
    enable(pipe, name)
    first = draw(pipe)
    check_parity(name, first, with_lora)
    assert np.array_equal(draw(pipe), first)
    pipe.disable(name)
    assert np.array_equal(draw(pipe), with_lora)
    pipe.unload_lora_weights()
    assert state(pipe) == before
    assert np.array_equal(draw(pipe), plain)


@each
def test_a_lora_comes_to_a_technique_and_goes(
    name: str, pipe: Any, path: Path, draw: Draw, plain: np.ndarray, with_lora: np.ndarray
) -> None:
    before = state(pipe)
    enable(pipe, name)
    without = draw(pipe)
    pipe.load_lora_weights(path, adapter_name="any")
    check_parity(name, draw(pipe), with_lora)
    pipe.disable_lora()
    assert np.array_equal(draw(pipe), without)
    pipe.enable_lora()
    check_parity(name, draw(pipe), with_lora)
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe), without)
    pipe.disable(name)
    assert state(pipe) == before
    assert np.array_equal(draw(pipe), plain)


@each
def test_merged_under_a_technique(
    name: str, pipe: Any, path: Path, draw: Draw, plain: np.ndarray, with_lora: np.ndarray
) -> None:
    before = state(pipe)
    enable(pipe, name)
    pipe.load_lora_weights(path, adapter_name="any")
    if name in ("sequential_offload", "model_offload"):
        with pytest.raises(ConfigError, match="travel from the checkpoint on disk"):
            pipe.fuse_lora()
    else:
        pipe.fuse_lora()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not in a checkpoint as they are in memory")  # OpenVINO's
            check_parity(name, draw(pipe), with_lora)
        pipe.unfuse_lora()
    pipe.unload_lora_weights()
    pipe.disable(name)
    assert state(pipe) == before
    assert np.array_equal(draw(pipe), plain)


def test_pipelines_that_share_networks_share_adapters(pipe: Any, path: Path, draw: Draw, with_lora: np.ndarray) -> None:
    other = StableDiffusionPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    other.load_lora_weights(path, adapter_name="any")
    assert pipe.get_active_adapters() == ["any"]
    assert np.array_equal(draw(pipe), with_lora)
    pipe.unload_lora_weights()
    assert other.get_list_adapters() == {}


def test_scales_of_calls_in_several_threads_are_apart(pipe: Any, path: Path, draw: Draw) -> None:
    pipe.load_lora_weights(path, adapter_name="any")
    scales = (0.25, 0.5, 1.0)
    alone = {scale: draw(pipe, cross_attention_kwargs={"scale": scale}) for scale in scales}
    together: dict[float, np.ndarray] = {}

    def run(scale: float) -> None:
        together[scale] = draw(pipe, cross_attention_kwargs={"scale": scale})

    threads = [threading.Thread(target=run, args=(scale,)) for scale in scales]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(together[scale], alone[scale]) for scale in scales)
    assert len({float(picture.sum()) for picture in alone.values()}) == len(scales)


def test_a_callback_may_switch_an_adapter(pipe: Any, path: Path, draw: Draw, plain: np.ndarray) -> None:
    pipe.load_lora_weights(path, adapter_name="any")

    def weigh(weight: float) -> Any:
        def change(running: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            running.set_adapters("any", weight)
            return {}

        return change

    stayed = draw(pipe, num_inference_steps=3, callback_on_step_end=weigh(1.0))
    changed = draw(pipe, num_inference_steps=3, callback_on_step_end=weigh(0.0))
    assert np.abs(stayed - changed).max() > 0.01
    assert np.array_equal(draw(pipe, num_inference_steps=2), draw(pipe, num_inference_steps=2))


def test_nobody_else_switches_one_while_a_picture_is_drawn(pipe: Any, path: Path, draw: Draw) -> None:
    pipe.load_lora_weights(path, adapter_name="any")
    errors: list[Exception] = []

    def elsewhere() -> None:
        try:
            pipe.unload_lora_weights()
        except ConfigError as error:
            errors.append(error)

    def change(running: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return {}

    draw(pipe, callback_on_step_end=change)
    assert len(errors) == 2
    assert "being drawn" in str(errors[0])


def test_compiled_blocks_refuse_the_scale_of_a_call(pipe: Any, path: Path, draw: Draw) -> None:
    pipe.load_lora_weights(path, adapter_name="any")
    enable(pipe, "compile")
    with pytest.raises(ConfigError, match="compiled blocks do not see"):
        draw(pipe, cross_attention_kwargs={"scale": 0.5})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casting_there_and_back_keeps_the_file_s_digits(pipe: Any, path: Path, draw: Draw, dtype: torch.dtype) -> None:
    pipe.load_lora_weights(path, adapter_name="any")
    kept = {name: buffer.clone() for name, buffer in pipe.unet.named_buffers()}
    draw(pipe)
    pipe.unet.to(dtype)
    pipe.unet.to(torch.float32)
    draw(pipe)
    assert kept
    assert all(torch.equal(buffer, kept[name]) for name, buffer in pipe.unet.named_buffers())
