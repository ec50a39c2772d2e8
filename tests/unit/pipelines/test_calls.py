"""Calls: seeds, callbacks, interruption, threads, progress, times, what is returned."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from leandiffusion import ConfigError, StableDiffusionPAGPipeline, StableDiffusionPipeline
from leandiffusion.modules.text_memory import TextMemory
from leandiffusion.schedulers import PRESETS
from leandiffusion.schedulers import build as build_scheduler

Draw = Callable[..., torch.Tensor]


@pytest.fixture(params=["sd1", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


# -- seeds and what is returned --------------------------------------------------------------------------------------


def test_the_same_seed_bit_for_bit(pipe: Any, draw: Draw) -> None:
    first = draw(pipe, 3)
    draw(pipe, 4)
    assert torch.equal(draw(pipe, 3), first)
    assert not torch.equal(draw(pipe, 4), first)


def test_a_generator_per_picture_draws_what_each_draws_alone(pipe: Any, draw: Draw) -> None:
    """Within 1e-5: a batch may add in another order than one picture alone."""
    together = draw(pipe, generator=[torch.Generator().manual_seed(i) for i in (5, 6)], num_images_per_prompt=2)
    for seed, picture in zip((5, 6), together, strict=True):
        torch.testing.assert_close(draw(pipe, seed)[0], picture, atol=1e-5, rtol=0)


def test_latents_in_and_out(pipe: Any, draw: Draw) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = noise.clone()
    latents = draw(pipe, latents=noise, output_type="latent")
    assert torch.equal(latents, draw(pipe, 0, output_type="latent"))
    assert torch.equal(noise, kept), "the caller's tensor is left alone"


def test_tuples(sd1: Any, sdxl: Any, draw: Draw) -> None:
    images, flags = sd1("a", num_inference_steps=1, return_dict=False)
    assert flags is None
    assert images[0].size == (64, 64)
    [images] = sdxl("a", num_inference_steps=1, return_dict=False, output_type="np")
    assert images.shape == (1, 64, 64, 3)
    assert images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1


def test_times_of_the_stages(pipe: Any, draw: Draw) -> None:
    assert pipe.last_times == {}
    draw(pipe)
    assert list(pipe.last_times) == ["encode", "denoise", "decode"]
    assert all(seconds > 0 for seconds in pipe.last_times.values())
    draw(pipe, output_type="latent")
    assert list(pipe.last_times) == ["encode", "denoise"]


# -- callbacks -------------------------------------------------------------------------------------------------------


def test_a_callback_sees_and_changes_latents(pipe: Any, draw: Draw) -> None:
    seen: list[tuple[int, float, list[str]]] = []

    def zero_last(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any] | None:
        seen.append((i, float(t), list(tensors)))
        assert (view.num_timesteps, view.guidance_scale, view.do_classifier_free_guidance) == (4, 3.0, True)
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 3 else None

    latents = draw(pipe, callback_on_step_end=zero_last, output_type="latent", guidance_scale=3.0)
    assert [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert sorted((t for _, t, _ in seen), reverse=True) == [t for _, t, _ in seen]
    assert {tuple(names) for _, _, names in seen} == {("latents",)}
    assert not latents.any()


def test_every_tensor_can_be_asked_for(pipe: Any, draw: Draw) -> None:
    plain = draw(pipe)
    asked = list(pipe.callback_tensors)

    def look(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        assert list(tensors) == asked
        assert tensors["prompt_embeds"].shape[0] == 2
        return tensors

    assert torch.equal(draw(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=asked), plain)

    def unguided(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        assert tensors["negative_prompt_embeds"] is None

    draw(pipe, callback_on_step_end=unguided, callback_on_step_end_tensor_inputs=asked, guidance_scale=1.0)


def test_guidance_switched_off_by_a_callback(sd1: Any, draw: Draw) -> None:
    """Off after the first of two steps equals an unguided second step; the UNet then sees half the batch."""
    batches: list[int] = []
    sd1.unet.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))

    def cut(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if i == 1:
            view._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    asked = ["latents", "prompt_embeds"]
    changed = draw(sd1, callback_on_step_end=cut, callback_on_step_end_tensor_inputs=asked)
    assert batches == [2, 2, 1, 1]
    assert not torch.equal(changed, draw(sd1))
    assert batches[4:] == [2, 2, 2, 2], "the next call is guided again"


def test_guidance_switched_off_by_half(pipe: Any, draw: Draw) -> None:
    """Without halving the embeddings there is nothing to draw: said so, and nothing is broken."""
    plain = draw(pipe)
    with pytest.raises(ConfigError, match=r"prompt_embeds has 2 rows and this step predicts 1: .* second half"):
        draw(pipe, callback_on_step_end=lambda view, *_: setattr(view, "_guidance_scale", 0.0))
    assert torch.equal(draw(pipe), plain)


def test_a_prompt_changed_by_a_callback(sd1: Any, draw: Draw) -> None:
    """Another prompt from the second step on, the same as drawing with it from there."""
    other = torch.cat(sd1.encode_prompt("zebra", negative_prompt="")[::-1])

    def swap(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": other}

    swapped = draw(sd1, prompt="a red cat", callback_on_step_end=swap)
    assert not torch.equal(swapped, draw(sd1, prompt="a red cat"))
    assert not torch.equal(swapped, draw(sd1, prompt="zebra"))
    assert torch.equal(draw(sd1, prompt="zebra", callback_on_step_end=swap), draw(sd1, prompt="zebra"))


@pytest.mark.parametrize(("returned", "message"), [(3, "returned a int: return a dict"), ({"latent": 0}, "'latent'")])
def test_nonsense_from_a_callback(pipe: Any, draw: Draw, returned: Any, message: str) -> None:
    plain = draw(pipe)
    with pytest.raises(ConfigError, match=message):
        draw(pipe, callback_on_step_end=lambda *_: returned)
    assert torch.equal(draw(pipe), plain)


# -- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["the call", "the pipeline"])
def test_interrupt_stops_after_the_step(pipe: Any, draw: Draw, told: str) -> None:
    plain, steps = draw(pipe), []

    def stop(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        steps.append(i)
        if i == 1:
            (view if told == "the call" else pipe)._interrupt = True
            assert view.interrupt

    stopped = draw(pipe, callback_on_step_end=stop)
    assert steps == [0, 1]
    assert stopped.shape == plain.shape
    assert not torch.equal(stopped, plain)
    assert torch.equal(draw(pipe), plain), "the next call runs to its end"


@pytest.mark.filterwarnings("ignore:decoding did not fit in memory")  # and then the strips fail too
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError])
@pytest.mark.parametrize("place", ["unet", "vae", "scheduler", "callback", "text_encoder"])
def test_an_error_leaves_the_pipeline_usable(
    pipe: Any, draw: Draw, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], place: str
) -> None:
    """Whatever is raised wherever: the same picture afterwards, bit for bit, also with a scheduler that has memory."""
    pipe.scheduler = build_scheduler("dpm++", pipe.scheduler.config)
    plain = draw(pipe)

    def fail(*_: Any, **__: Any) -> None:
        raise error("stop")

    def meddle_and_fail(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        view._guidance_scale, view.scheduler._step_index = 2.0, 0
        if i == 2:
            view._interrupt, view.unet, view.scheduler = True, None, None
            fail()

    targets = {
        "unet": (pipe.unet.mid_block, "forward"), "vae": (pipe.vae, "decode"),
        "scheduler": (type(pipe.scheduler), "step"), "text_encoder": (pipe.text_encoder, "forward"),
    }  # fmt: skip
    with monkeypatch.context() as patch:
        if place in targets:
            patch.setattr(*targets[place], fail)
        with pytest.raises(error):
            draw(pipe, callback_on_step_end=meddle_and_fail if place == "callback" else None)
    assert torch.equal(draw(pipe), plain)


# -- several calls at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["pndm", "dpm++", "lms", "heun"])
def test_threads_draw_what_each_draws_alone(sd1: Any, draw: Draw, scheduler: str) -> None:
    """Eight calls at once, of different lengths, scales and prompts, with schedulers that remember past steps."""
    sd1.scheduler = build_scheduler(scheduler, sd1.scheduler.config)
    orders = [
        {"seed": i, "prompt": "abcdefgh"[i], "num_inference_steps": 4 + i, "guidance_scale": 1.0 + i} for i in range(8)
    ]
    alone = [draw(sd1, **order) for order in orders]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda order: draw(sd1, **order), orders))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert len({picture.sum().item() for picture in alone}) == 8


def test_a_callback_changes_its_own_call_only(sd1: Any, draw: Draw) -> None:
    plain = draw(sd1, 0)

    def meddle(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        inner = draw(sd1, 0)  # another call of the same pipeline, in the middle of this one
        assert torch.equal(inner, plain)
        view._guidance_rescale = 1.0
        return {}

    outer = draw(sd1, 0, callback_on_step_end=meddle)
    assert not torch.equal(outer, plain)
    assert torch.equal(draw(sd1, 0), plain)


# -- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", PRESETS)
def test_the_progress_bar_ends_full(sd1: Any, draw: Draw, scheduler: str) -> None:
    sd1.scheduler = build_scheduler(scheduler, sd1.scheduler.config)
    out = io.StringIO()
    sd1.set_progress_bar_config(file=out, desc="Drawing", mininterval=0)
    draw(sd1, num_inference_steps=5)
    last = out.getvalue().replace("\n", "\r").rstrip("\r").split("\r")[-1]
    steps = 14 if scheduler == "pndm" else 5  # its Runge-Kutta warm-up asks the model four times per step
    assert "Drawing: 100%" in last
    assert f" {steps}/{steps} " in last


def test_no_progress_bar_when_disabled(sd1: Any, draw: Draw, capfd: pytest.CaptureFixture[str]) -> None:
    draw(sd1)
    assert capfd.readouterr().err == ""


# -- notices ---------------------------------------------------------------------------------------------------------


def test_a_notice_is_given_once_at_the_callers_line(sd1: Any, draw: Draw) -> None:
    sd1.notice = lambda text: f"unknown: {text}" if "cat" in text else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sd1(["a cat", "a cat", "a dog"], num_inference_steps=1)
    assert [str(warning.message) for warning in caught] == ["unknown: a cat"]
    assert caught[0].filename == __file__


def test_autocast_is_warned_of(sd1: Any, draw: Draw) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match=r"torch.autocast is on: .* faster"):
        draw(sd1)


@pytest.mark.parametrize("technique", [None, "sequential_offload", "unet_slicing", "perturbed attention"])
def test_no_keys_of_a_text_lie_beside_a_decode(technique: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    perturbed = technique == "perturbed attention"
    pipe: Any = (StableDiffusionPAGPipeline if perturbed else StableDiffusionPipeline).from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    if technique is not None and not perturbed:
        pipe.enable(technique)
    made: list[TextMemory] = []
    of, decode, beside = TextMemory.of, pipe.vae.decode, []

    def note(memory: TextMemory, layer: Any) -> Any:
        made.append(memory)
        return of(memory, layer)

    def look(*args: Any, **kwargs: Any) -> Any:
        beside.append(sum(len(memory._made) for memory in made))
        return decode(*args, **kwargs)

    monkeypatch.setattr(TextMemory, "of", note)
    monkeypatch.setattr(pipe.vae, "decode", look)
    pipe("a red circle", height=64, width=64, num_inference_steps=2)
    assert made
    assert beside == [0]
