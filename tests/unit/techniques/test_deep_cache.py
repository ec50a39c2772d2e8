"""Deep features reused between steps: which calls of the UNet are whole, counted, and when the features are dropped."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from tests.unit.pipelines.conftest import NOISE, make_sd1, make_sdxl, unet
from tests.unit.techniques.test_guidance_interval import EMBEDS, draw
from torch import Tensor, nn

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.measure.work import count_flops
from leandiffusion.run.run import Run
from leandiffusion.schedulers import build
from leandiffusion.weights import read

FAMILIES: dict[str, Callable[..., Any]] = {"sd1": make_sd1, "sdxl": make_sdxl}


@pytest.fixture
def pipe() -> Any:
    return make_sd1()


def whole(pipe: Any, **arguments: Any) -> list[bool]:
    """Of each call of the UNet, whether it was computed whole; of another network too."""
    found: list[bool] = []

    def prepare(run: Run) -> None:
        reusing: Any = run.call
        inner = reusing._inner

        def see(run: Run, given: Tensor, i: int, inputs: Any) -> Tensor:
            found.append("deep" not in inputs or inputs["deep"].value is None)
            return inner(run, given, i, inputs)

        reusing._inner = see

    undo = pipe._stack.subject.each_run(prepare)
    draw(pipe, **arguments)
    undo()
    return found


def pattern(text: str) -> list[bool]:
    """'W--W': whole, twice the outermost part, whole."""
    return [letter == "W" for letter in text]


@pytest.mark.parametrize(("interval", "expected"), [(2, "W-W-W-W-W-"), (3, "W--W--W--W"), (20, "W---------")])
def test_which_calls_are_whole(pipe: Any, interval: int, expected: str) -> None:
    pipe.enable_deep_cache(interval)
    assert whole(pipe) == pattern(expected)
    assert whole(pipe, num_images_per_prompt=3) == pattern(expected)
    assert whole(pipe, guidance_scale=1.0) == pattern(expected)
    assert whole(pipe, height=80, width=72) == pattern(expected), "another size, in the same session"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interval_of_one_is_the_plain_path(family: str) -> None:
    """To the last bit, and so it is again once it is off."""
    pipe = FAMILIES[family]()
    plain = draw(pipe)
    pipe.enable_deep_cache(interval=1)
    assert torch.equal(draw(pipe), plain)
    pipe.enable_deep_cache(interval=2)
    assert not torch.equal(draw(pipe), plain)
    pipe.disable_deep_cache()
    assert torch.equal(draw(pipe), plain)


def test_the_work_that_it_saves(pipe: Any) -> None:
    """A picture takes what its whole steps take and its short ones; the text's keys and values are projected once."""
    pipe.set_attention_backend("plain")  # torch counts no other on a CPU

    def count(steps: int) -> int:
        given = {"prompt_embeds": EMBEDS[:1], "negative_prompt_embeds": EMBEDS[1:]}
        return count_flops(lambda: draw(pipe, steps=steps, **given))

    one, ten = count(1), count(10)
    pipe.enable_deep_cache(interval=20)
    whole_step, short_step = (ten - one) // 9, (count(10) - one) // 9
    assert short_step < whole_step / 2
    pipe.enable_deep_cache(interval=3)
    assert count(10) == one + 3 * whole_step + 6 * short_step


def test_calls_are_counted_where_a_step_has_two(pipe: Any) -> None:
    pipe.scheduler = build("heun", NOISE)
    pipe.enable_deep_cache(interval=3)
    assert whole(pipe, steps=4) == pattern("W--W--W")


def test_another_prompt_is_computed_whole(pipe: Any) -> None:
    """A callback's, in another tensor or written into the one that it was shown."""
    pipe.enable_deep_cache(interval=5)

    def replace(call: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": tensors["prompt_embeds"] * 2} if i == 2 else tensors

    def write(call: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if i == 2:
            tensors["prompt_embeds"].mul_(2)
        return {}

    for callback in (replace, write):
        wanted = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        assert whole(pipe, **wanted) == pattern("W--W----W-")


def test_guidance_switched_off_is_computed_whole(pipe: Any) -> None:
    def off(call: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if i != 1:
            return {}
        call._guidance_scale = 1.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}

    pipe.enable_deep_cache(interval=4)
    wanted = {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert whole(pipe, **wanted) == pattern("W-W---W---")


def test_at_the_end_of_a_guidance_interval(pipe: Any) -> None:
    """The batch is another one there: its first step is whole."""
    pipe.enable_deep_cache(interval=3)
    pipe.enable_guidance_interval(0, 0.5)
    assert whole(pipe) == pattern("W--W-W--W-")


def test_a_replaced_unet_is_followed(pipe: Any) -> None:
    """One of our own starts anew; another's is called as it is; and one that looks on sees plain calls."""
    own, foreign, hooked = unet(), nn.Module(), unet()
    foreign.forward = lambda x, t, encoder_hidden_states: (x.repeat(len(encoder_hidden_states), 1, 1, 1)[:2],)
    hooked.forward = lambda *args, **inputs: type(hooked).forward(hooked, *args, **inputs)
    pipe.enable_deep_cache(interval=4)
    for other, expected in ((own, "W-W---W---"), (foreign, "W-WWWWWWWW"), (hooked, "W-WWWWWWWW")):

        def replace(call: Any, i: int, t: Tensor, tensors: Any, other: Any = other) -> dict[str, Any]:
            if i == 1:
                call.unet = other
            return {}

        assert whole(pipe, callback_on_step_end=replace) == pattern(expected)


def test_interrupted(pipe: Any) -> None:
    def stop(call: Any, i: int, t: Tensor, tensors: Any) -> dict[str, Any]:
        call._interrupt = i == 4
        return {}

    pipe.enable_deep_cache(interval=3)
    assert whole(pipe, callback_on_step_end=stop) == pattern("W--W-")
    assert whole(pipe) == pattern("W--W--W--W"), "nothing is left for the next call"


def test_the_feature_ends_with_the_call(pipe: Any) -> None:
    """And not when garbage is collected: it is as large as the widest feature maps."""
    calls: list[ref[Any]] = []
    pipe.enable_deep_cache(interval=3)
    undo = pipe._stack.subject.each_run(lambda run: calls.append(ref(run.call)))
    gc.collect()
    gc.disable()
    try:
        draw(pipe)
        assert calls[0]() is None
    finally:
        gc.enable()
    undo()


def test_layers_left_out_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From disk, with weights that travel: the picture is the one with weights in memory, to the last bit."""
    make_sd1().save_pretrained(tmp_path)
    resident = StableDiffusionPipeline.from_pretrained(tmp_path)
    resident.enable_deep_cache(interval=5)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, offload="sequential")
    counted, inner = [0], read._read_at

    def count(*args: Any) -> int:
        found = inner(*args)
        counted[0] += found
        return found

    monkeypatch.setattr(read, "_read_at", count)
    draw(pipe)
    counted[0] = 0
    draw(pipe)
    plain = counted[0]
    pipe.enable_deep_cache(interval=5)
    draw(pipe)
    counted[0] = 0
    assert torch.equal(draw(pipe), draw(resident))
    assert counted[0] < plain / 2


def test_what_it_refuses(pipe: Any) -> None:
    for wrong in ({"interval": 0}, {"interval": 2.5}, {"interval": True}, {"branch": -1}, {"branch": "deep"}):
        with pytest.raises(ConfigError, match=r"pass a whole number of [01] or more"):
            pipe.enable("deep_cache", **wrong)
    with pytest.raises(BackendUnavailable, match="branch=4: this UNet's skip connections have the numbers 0 to 3"):
        pipe.enable_deep_cache(branch=4)
    pipe.unet.forward = pipe.unet.forward
    with pytest.raises(BackendUnavailable, match="expected leandiffusion's own and its own forward"):
        pipe.enable_deep_cache()


def test_compiled_blocks(pipe: Any) -> None:
    """They are the same blocks: 1e-5, because a compiler may order sums otherwise."""
    pipe.enable_deep_cache(interval=2)
    expected = draw(pipe, steps=4)
    pipe.enable("compile", backend="eager", parts=("unet",))
    torch.testing.assert_close(draw(pipe, steps=4), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
