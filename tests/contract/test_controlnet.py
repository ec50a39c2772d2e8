"""Every technique with a ControlNet on the pipeline: the picture that there is without the technique, no trace of it
afterwards, on the ControlNet's layers either. A new one joins by being registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.contract.common import USABLE, Draw, enable, quietly, state
from tests.contract.test_one_technique import check_parity
from tests.parity.controlnet_files import save_controlnet

from leandiffusion import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline

each = pytest.mark.parametrize("name", USABLE)


def opened(folder: Path, count: int = 1) -> Any:
    nets = [ControlNetModel.from_pretrained(folder) for _ in range(count)]
    pipe = StableDiffusionControlNetPipeline.from_pretrained("demo", controlnet=nets if count > 1 else nets[0])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet for the packaged model, whose random weights say something, and not too much."""
    unet = StableDiffusionPipeline.from_pretrained("demo").unet
    return save_controlnet(tmp_path_factory.mktemp("controlnet"), unet, gain=3.0)


@pytest.fixture(scope="session")
def seen() -> torch.Tensor:
    """What ControlNets see."""
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def pipe(folder: Path) -> Any:
    pipe = opened(folder)
    yield pipe
    pipe._stack.clear()


@pytest.fixture(scope="module")
def controlled(folder: Path, draw: Draw, plain: np.ndarray, seen: torch.Tensor) -> np.ndarray:
    """What the packaged model draws with it, and nothing else on."""
    picture = draw(opened(folder), image=seen)
    assert np.abs(picture - plain).max() > 0.05
    return picture


@each
def test_parity_and_exact_undo(name: str, pipe: Any, draw: Draw, seen: torch.Tensor, controlled: np.ndarray) -> None:
    before = state(pipe)
    enable(pipe, name)
    first = draw(pipe, image=seen)
    check_parity(name, first, controlled)
    assert np.array_equal(draw(pipe, image=seen), first)
    pipe.disable(name)
    assert state(pipe) == before
    assert np.array_equal(draw(pipe, image=seen), controlled)


@each
@pytest.mark.parametrize(
    "arguments",
    [{"guess_mode": True}, {"guidance_scale": 1.0}, {"num_images_per_prompt": 2}, {"control_guidance_end": 0.5}],
    ids=["guess mode", "no guidance", "two images", "a part of the steps"],
)
def test_other_calls(name: str, arguments: dict[str, Any], pipe: Any, draw: Draw, seen: torch.Tensor) -> None:
    expected = draw(pipe, image=seen, **arguments)
    enable(pipe, name)
    check_parity(name, draw(pipe, image=seen, **arguments), expected)


@each
def test_two_at_once(name: str, folder: Path, draw: Draw, seen: torch.Tensor) -> None:
    pipe = opened(folder, 2)
    both: dict[str, Any] = {"image": [seen, 1 - seen], "controlnet_conditioning_scale": [0.7, 0.3]}
    expected, before = draw(pipe, **both), state(pipe)
    enable(pipe, name)
    check_parity(name, draw(pipe, **both), expected)
    pipe.disable(name)
    assert state(pipe) == before
    assert np.array_equal(draw(pipe, **both), expected)


@each
def test_a_failure_in_the_controlnet(
    name: str, pipe: Any, draw: Draw, seen: torch.Tensor, controlled: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(pipe)
    enable(pipe, name)
    expected, inner = draw(pipe, image=seen), type(pipe.controlnet)._scaled

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.controlnet), "_scaled", fail)
        with pytest.raises(RuntimeError, match="out of memory"), quietly():
            draw(pipe, image=seen)
    assert type(pipe.controlnet)._scaled is inner
    assert np.array_equal(draw(pipe, image=seen), expected)
    pipe.disable(name)
    assert state(pipe) == before
    assert np.array_equal(draw(pipe, image=seen), controlled)


def test_slices_and_kernels_of_attention_are_the_controlnet_s_too(pipe: Any) -> None:
    from leandiffusion.attention.sliced import Sliced
    from leandiffusion.modules.processors import attention_layers

    def backends() -> list[Any]:
        return [layer.backend for _, layer in attention_layers(pipe.controlnet)]

    before = backends()
    assert before
    enable(pipe, "attention_slicing")
    assert all(isinstance(backend, Sliced) for backend in backends())
    pipe.disable("attention_slicing")
    enable(pipe, "attention_backend")
    assert all(backend.name == "plain" for backend in backends())
    pipe.disable("attention_backend")
    assert backends() == before


def test_whole_components_come_once_for_all_steps(pipe: Any, draw: Draw, seen: torch.Tensor) -> None:
    """UNet and ControlNet take turns in each step, so they stay together."""
    from leandiffusion.offload.engine import engine_of

    enable(pipe, "model_offload")
    engine: Any = engine_of(pipe.unet)
    read, names = engine._conveyor._read, []
    engine._conveyor._read = lambda unit, memory: (names.append(unit.name), read(unit, memory))[1]
    draw(pipe, image=seen, num_inference_steps=3)
    assert sorted(names) == ["text_encoder", "unet", "vae"]
