"""What a pipeline shows of its calls, and what callbacks may change of them by closure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from leandiffusion import ConfigError
from leandiffusion.schedulers import PRESETS
from leandiffusion.schedulers import build as build_scheduler

Draw = Callable[..., torch.Tensor]
SHOWN = ("guidance_scale", "guidance_rescale", "clip_skip", "cross_attention_kwargs", "num_timesteps")


@pytest.fixture(params=["sd1", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def shown(pipe: Any) -> dict[str, Any]:
    return {name: getattr(pipe, name) for name in SHOWN}


# -- after a call ----------------------------------------------------------------------------------------------------


def test_before_the_first_call_there_is_nothing_to_show(pipe: Any) -> None:
    for name in (*SHOWN, "do_classifier_free_guidance"):
        with pytest.raises(AttributeError, match="nothing was drawn yet"):
            getattr(pipe, name)
    assert pipe.interrupt is False


@pytest.mark.parametrize("name", PRESETS)
def test_a_call_leaves_its_values(pipe: Any, draw: Draw, name: str) -> None:
    scheduler = pipe.scheduler = build_scheduler(name, pipe.scheduler.config)
    draw(pipe, guidance_scale=3.5, guidance_rescale=0.25, clip_skip=1, num_inference_steps=5)
    assert shown(pipe) == {
        "guidance_scale": 3.5, "guidance_rescale": 0.25, "clip_skip": 1, "cross_attention_kwargs": None,
        "num_timesteps": len(scheduler.timesteps),
    }  # fmt: skip
    assert pipe.do_classifier_free_guidance
    assert pipe.scheduler is scheduler, "the very object that was there"
    assert scheduler.num_inference_steps == 5
    twin = build_scheduler(name, pipe.scheduler.config)
    twin.set_timesteps(5)
    assert torch.equal(scheduler.timesteps, twin.timesteps)
    draw(pipe, guidance_scale=1.0, num_inference_steps=4)
    assert not pipe.do_classifier_free_guidance
    assert scheduler.num_inference_steps == 4


def test_denoising_end(sdxl: Any, draw: Draw) -> None:
    draw(sdxl, denoising_end=0.5)
    assert sdxl.denoising_end == 0.5
    assert sdxl.num_timesteps == 2
    assert len(sdxl.scheduler.timesteps) == 4


def test_a_call_that_fails_leaves_its_values_too(pipe: Any, draw: Draw) -> None:
    def fail(*_: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        draw(pipe, guidance_scale=2.5, callback_on_step_end=fail)
    assert pipe.guidance_scale == 2.5
    plain = draw(pipe)
    assert torch.equal(draw(pipe), plain)


def test_wrong_arguments_leave_what_was(pipe: Any, draw: Draw) -> None:
    draw(pipe, guidance_scale=2.5)
    with pytest.raises(ConfigError):
        draw(pipe, guidance_scale=9.0, height=65)
    assert pipe.guidance_scale == 2.5


# -- callbacks that reach the pipeline by closure ----------------------------------------------------------------------


def test_the_pipeline_reads_as_the_running_call(pipe: Any, draw: Draw) -> None:
    draw(pipe, guidance_scale=9.0, num_inference_steps=2)
    before, seen = pipe.scheduler, []

    def look(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        assert shown(pipe) == shown(view)
        assert pipe.scheduler is view.scheduler
        assert pipe.scheduler.timesteps[i] == t
        seen.append(pipe.guidance_scale)

    draw(pipe, guidance_scale=4.0, callback_on_step_end=look)
    assert seen == [4.0] * 4
    assert pipe.scheduler is before


@pytest.mark.parametrize(
    ("name", "value"), [("_guidance_scale", 2.0), ("_guidance_rescale", 0.7), ("_guidance_scale", 12.0)]
)
def test_settings(pipe: Any, draw: Draw, name: str, value: float) -> None:
    """Set through the pipeline or through what the callback is given: the same picture, another than without."""

    def change(target: Callable[[Any], Any]) -> Callable[..., None]:
        return lambda view, i, *_: setattr(target(view), name, value) if i == 1 else None

    plain = draw(pipe)
    by_closure = draw(pipe, callback_on_step_end=change(lambda view: pipe))
    assert getattr(pipe, name) == value, "as the call ended"
    assert torch.equal(by_closure, draw(pipe, callback_on_step_end=change(lambda view: view)))
    assert not torch.equal(by_closure, plain)
    assert torch.equal(draw(pipe), plain)


def test_guidance_switched_off_by_closure(sd1: Any, draw: Draw) -> None:
    batches: list[int] = []
    sd1.unet.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))

    def cut(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if i == 1:
            sd1._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    draw(sd1, callback_on_step_end=cut, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    assert batches == [2, 2, 1, 1]
    assert not sd1.do_classifier_free_guidance


def test_components(pipe: Any, draw: Draw, build: dict[str, Callable[..., Any]]) -> None:
    """Another UNet from the third step on, another VAE to decode with; both stay, as in diffusers."""
    plain, old, runs = draw(pipe), pipe.unet, []
    other = type(old)(**old.config).eval()
    other.load_state_dict({name: tensor * 0.9 for name, tensor in old.state_dict().items()})
    other.register_forward_pre_hook(lambda *_: runs.append(1))
    vae = type(pipe.vae)(**pipe.vae.config).eval()

    def swap(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        if i == 1:
            pipe.unet, pipe.vae = other, vae

    changed = draw(pipe, callback_on_step_end=swap)
    assert len(runs) == 2
    assert pipe.unet is other
    assert pipe.vae is vae
    assert not torch.equal(changed, plain)


def test_another_scheduler(sd1: Any, draw: Draw) -> None:
    plain = draw(sd1)
    other = build_scheduler("euler", sd1.scheduler.config)
    other.set_timesteps(4)

    def swap(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        if i == 0:
            other.set_begin_index(1)
            sd1.scheduler = other

    assert not torch.equal(draw(sd1, callback_on_step_end=swap), plain)
    assert sd1.scheduler is other
    assert other.step_index == 4, "it took the remaining steps itself"


@pytest.mark.parametrize("steps_seen", [1, 2])
def test_a_stop_from_another_thread(pipe: Any, draw: Draw, steps_seen: int) -> None:
    seen: list[int] = []

    def stop(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        seen.append(i)
        if len(seen) == steps_seen:
            button = threading.Thread(target=lambda: setattr(pipe, "_interrupt", True))
            button.start()
            button.join()

    draw(pipe, callback_on_step_end=stop)
    assert len(seen) == steps_seen
    assert pipe.interrupt
    seen.clear()
    draw(pipe, callback_on_step_end=lambda view, i, *_: seen.append(i))
    assert len(seen) == 4


# -- threads and calls within calls ------------------------------------------------------------------------------------


def test_threads_see_their_own_call(sd1: Any, draw: Draw) -> None:
    """Six calls step in turn, and each changes its own guidance through the shared pipeline."""
    sd1.scheduler = build_scheduler("dpm++", sd1.scheduler.config)
    barrier = threading.Barrier(6, timeout=60)

    def run(number: int, wait: Callable[[], object]) -> torch.Tensor:
        def change(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
            wait()
            assert sd1.guidance_scale == number + 2 + i * 0.5
            assert sd1.scheduler is view.scheduler
            sd1._guidance_scale = number + 2 + (i + 1) * 0.5
            wait()

        return draw(sd1, number, guidance_scale=number + 2.0, callback_on_step_end=change)

    alone = [run(number, lambda: None) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda number: run(number, barrier.wait), range(6)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert sd1.guidance_scale in [number + 4.0 for number in range(6)]


def test_the_last_call_to_end_wins(sd1: Any, draw: Draw) -> None:
    ended = threading.Event()

    def other() -> None:
        draw(sd1, guidance_scale=3.0, num_inference_steps=2)
        ended.set()

    def while_it_runs(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        if i == 0:
            thread = threading.Thread(target=other)
            thread.start()
            assert ended.wait(60)
            thread.join()
            assert sd1.guidance_scale == 5.0

    draw(sd1, guidance_scale=5.0, callback_on_step_end=while_it_runs)
    assert (sd1.guidance_scale, sd1.num_timesteps, len(sd1.scheduler.timesteps)) == (5.0, 4, 4)


@pytest.mark.parametrize("through", ["pipeline", "view"])
def test_a_call_within_a_call(sd1: Any, draw: Draw, through: str) -> None:
    sd1.scheduler = build_scheduler("dpm++", sd1.scheduler.config)
    plain = draw(sd1)

    def preview(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        draw(sd1 if through == "pipeline" else view, 5, num_inference_steps=2, guidance_scale=2.0)
        assert (view.guidance_scale, sd1.guidance_scale, sd1.num_timesteps) == (7.5, 7.5, 4)

    assert torch.equal(draw(sd1, callback_on_step_end=preview, guidance_scale=7.5), plain)
    assert (sd1.guidance_scale, len(sd1.scheduler.timesteps)) == (7.5, 4)


def test_nothing_of_a_call_stays_behind(pipe: Any, draw: Draw) -> None:
    draw(pipe)
    assert pipe._under_way == []
    assert pipe._view is None


# -- the older callback ------------------------------------------------------------------------------------------------


def test_the_older_callback(pipe: Any, draw: Draw) -> None:
    seen: list[tuple[int, int, torch.Tensor]] = []
    with pytest.warns(FutureWarning) as caught:
        latents = draw(pipe, num_inference_steps=5, output_type="latent", callback_steps=2,
                       callback=lambda i, t, x: seen.append((i, int(t), x)))  # fmt: skip
    assert {str(warning.message).split()[0] for warning in caught} == {"callback", "callback_steps"}
    assert [i for i, _, _ in seen] == [0, 2, 4]
    assert [t for _, t, _ in seen] == pipe.scheduler.timesteps[::2].tolist()
    assert torch.equal(seen[-1][2], latents)


def test_the_older_callback_counts_steps_not_calls_of_the_model(sd1: Any, draw: Draw) -> None:
    sd1.scheduler = build_scheduler("heun", sd1.scheduler.config)
    seen: list[int] = []
    with pytest.warns(FutureWarning, match="callback is deprecated"):
        draw(sd1, num_inference_steps=3, callback=lambda i, t, x: seen.append(i))
    assert seen == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:callback:FutureWarning")
@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"callback_steps": 0}, "callback_steps=0: pass a whole number of 1 or more"),
        ({"callback_steps": 1.5}, "callback_steps=1.5"),
        ({"callback": 3}, "callback=3 cannot be called"),
    ],
)
def test_wrong_keywords(pipe: Any, given: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        pipe("a", num_inference_steps=1, **given)


@pytest.mark.filterwarnings("ignore:callback:FutureWarning")
def test_both_callbacks(pipe: Any, draw: Draw) -> None:
    """The newer one runs first and sees what it asked for; the older one sees what it changed."""
    seen: list[tuple[str, float]] = []

    def newer(view: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        assert list(tensors) == ["latents", "prompt_embeds"]
        seen.append(("newer", 0.0))
        return {"latents": torch.full_like(tensors["latents"], float(i))}

    draw(pipe, callback=lambda i, t, x: seen.append(("older", x.mean().item())), callback_on_step_end=newer,
         callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"], num_inference_steps=2)  # fmt: skip
    assert seen == [("newer", 0.0), ("older", 0.0), ("newer", 0.0), ("older", 1.0)]
    with pytest.raises(TypeError, match="unexpected keyword argument 'image'"):
        pipe("a", image=None)


@pytest.mark.parametrize(
    ("scheduler", "given"), [("dpm++", {"timesteps": [900, 500, 20]}), ("euler", {"sigmas": [9.0, 3.0, 0.5, 0.0]})]
)
def test_own_steps_need_no_number(pipe: Any, draw: Draw, scheduler: str, given: dict[str, Any]) -> None:
    pipe.scheduler = build_scheduler(scheduler, pipe.scheduler.config)
    assert torch.equal(draw(pipe, num_inference_steps=None, **given), draw(pipe, **given))
    assert pipe.num_timesteps == 3
