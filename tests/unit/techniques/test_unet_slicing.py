"""A step's predictions a few at a time: which calls of the UNet are made, and that the picture is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.pipelines.conftest import make_sd1, make_sdxl, paint

from leandiffusion import ConfigError
from leandiffusion.modules import text_memory
from leandiffusion.run.size import CallSize
from leandiffusion.schedulers import build
from leandiffusion.techniques.unet_slicing import UNetSlicing

FAMILIES: dict[str, Callable[..., Any]] = {"sd1": make_sd1, "sdxl": make_sdxl}


def rows_of_calls(pipe: Any, **arguments: Any) -> list[tuple[int, int]]:
    """Samples and texts of each call of the UNet in the first step."""
    found: list[tuple[int, int]] = []
    forward = pipe.unet.forward

    def see(sample: torch.Tensor, *args: Any, encoder_hidden_states: torch.Tensor, **inputs: Any) -> Any:
        found.append((len(sample), len(encoder_hidden_states)))
        return forward(sample, *args, encoder_hidden_states=encoder_hidden_states, **inputs)

    pipe.unet.forward = see
    paint(pipe, num_inference_steps=1, **arguments)
    del pipe.unet.forward
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 20])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_the_picture_is_the_same(family: str, size: int, count: int, scale: float) -> None:
    pipe = FAMILIES[family]()
    arguments = {"num_images_per_prompt": count, "guidance_scale": scale, "height": 64, "width": 48}
    plain = paint(pipe, **arguments)
    pipe.enable_unet_slicing(size)
    torch.testing.assert_close(paint(pipe, **arguments), plain, rtol=0, atol=1e-5)
    pipe.disable_unet_slicing()
    assert torch.equal(paint(pipe, **arguments), plain)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, [(1, 1)] * 6), (2, [(2, 2)] * 3), (3, [(2, 2)] * 3), (4, [(4, 4), (2, 2)]), (6, [(6, 6)])],
)
def test_which_calls_are_made_of_three_guided_pictures(size: int, expected: list[tuple[int, int]]) -> None:
    pipe = make_sd1()  # whose UNet is looked at, and so gets a sample for each text
    pipe.enable_unet_slicing(size)
    assert rows_of_calls(pipe, num_images_per_prompt=3) == expected
    told = UNetSlicing(size).unet_calls(CallSize(64, 64, 3))
    assert sum(call.batch * (1 + call.guidance) * count for call, count in told.items()) == 6
    assert sum(told.values()) == len(expected)


@pytest.mark.parametrize("name", ["euler-a", "dpm++-karras", "heun"])
def test_noise_is_that_of_the_batch(name: str) -> None:
    pipe = make_sd1(scheduler=build(name, {"steps_offset": 1}))
    plain = paint(pipe, num_images_per_prompt=2)
    pipe.enable_unet_slicing()
    torch.testing.assert_close(paint(pipe, num_images_per_prompt=2), plain, rtol=0, atol=1e-5)


def test_keys_and_values_of_the_text_are_made_once_per_part(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    of = text_memory.TextMemory.of

    def counting(memory: Any, layer: Any) -> Any:
        made.append(id(layer)) if id(layer) not in memory._made else None
        return of(memory, layer)

    monkeypatch.setattr(text_memory.TextMemory, "of", counting)
    pipe = make_sd1()
    paint(pipe, num_inference_steps=4)
    once = len(made)
    pipe.enable_unet_slicing()
    made.clear()
    paint(pipe, num_inference_steps=4)
    assert len(made) == 2 * once > 0


def test_a_callback_that_changes_the_prompt_is_followed() -> None:
    pipe = make_sd1()

    def change(_: Any, step: int, __: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"prompt_embeds": tensors["prompt_embeds"].flip(1) * 20} if step == 1 else {}

    call = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    plain = paint(pipe, **call)
    pipe.enable_unet_slicing()
    torch.testing.assert_close(paint(pipe, **call), plain, rtol=0, atol=1e-5)
    assert not torch.allclose(paint(pipe), plain, atol=1e-4)


def test_with_guidance_in_an_interval() -> None:
    pipe = make_sd1()
    pipe.enable_guidance_interval(0.0, 0.5)
    plain = paint(pipe, num_images_per_prompt=2)
    pipe.enable_unet_slicing(3)
    torch.testing.assert_close(paint(pipe, num_images_per_prompt=2), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2", None])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        UNetSlicing(size)
