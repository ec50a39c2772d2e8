"""Guidance in a part of the steps: what the UNet is given in each, counted, and what a run follows meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from tests.unit.pipelines.conftest import NOISE, make_sd1, make_sdxl, quiet, unet
from torch import Tensor

from leandiffusion import ConfigError
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.measure.work import count_flops
from leandiffusion.run.run import Run
from leandiffusion.schedulers import build

EMBEDS = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(3))
FAMILIES: dict[str, Callable[..., Any]] = {"sd1": make_sd1, "sdxl": make_sdxl}


@pytest.fixture
def pipe() -> Any:
    return make_sd1()


def draw(pipe: Any, steps: int = 10, **arguments: Any) -> Tensor:
    given = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": steps, "output_type": "latent"}
    if "prompt_embeds" not in arguments:
        given["prompt"] = "a red circle"
    return quiet(pipe)(**given | arguments).images


def watch(pipe: Any, see: Callable[[Run, Tensor, int, Any], object]) -> Callable[[], None]:
    """See what each call of the UNet is given. Undo with what it returns."""

    def prepare(run: Run) -> None:
        inner = run.call

        def call(run: Run, given: Tensor, i: int, inputs: Any) -> Tensor:
            see(run, given, i, inputs)
            return inner(run, given, i, inputs)

        run.call = call

    return pipe._stack.subject.each_run(prepare)


def texts(pipe: Any, **arguments: Any) -> list[int]:
    """Rows of text that each call of the UNet was given."""
    rows: list[int] = []
    undo = watch(pipe, lambda run, given, i, inputs: rows.append(len(inputs["encoder_hidden_states"])))
    draw(pipe, **arguments)
    undo()
    return rows


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0, 1), [2] * 10), ((0, 0.5), [2] * 5 + [1] * 5), ((0.2, 0.4), [1, 1, 2, 2, 1, 1, 1, 1, 1, 1])],
)
def test_rows_of_each_step(pipe: Any, interval: tuple[float, float], expected: list[int]) -> None:
    pipe.enable_guidance_interval(*interval)
    assert texts(pipe) == expected
    assert texts(pipe, num_images_per_prompt=3) == [3 * rows for rows in expected]
    assert texts(pipe, guidance_scale=1.0) == [1] * 10


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_interval_is_guidance_as_usual(family: str) -> None:
    """To the last bit, rescaled or not, and so it is again once it is off."""
    pipe = FAMILIES[family]()
    plain = [draw(pipe, guidance_rescale=rescale) for rescale in (0.0, 0.7)]
    pipe.enable_guidance_interval(start=0, stop=1)
    assert all(torch.equal(draw(pipe, guidance_rescale=r), x) for r, x in zip((0.0, 0.7), plain, strict=True))
    pipe.enable_guidance_interval(0.2, 0.6)
    assert not torch.equal(draw(pipe), plain[0])
    pipe.disable_guidance_interval()
    assert torch.equal(draw(pipe), plain[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_it_is_a_call_without_guidance(family: str) -> None:
    """All of SDXL's conditions are the conditional half's: the same picture as of an interval that is over at once,
    but for its one step. 1e-5: a batch of another size may be summed in another order."""
    pipe = FAMILIES[family]()
    switch_off: Any = lambda call, i, t, tensors: _conditional(call, tensors)  # noqa: E731
    names = [name for name in pipe.callback_tensors if name in ("prompt_embeds", "add_text_embeds", "add_time_ids")]
    expected = draw(pipe, callback_on_step_end=switch_off, callback_on_step_end_tensor_inputs=names)
    pipe.enable_guidance_interval(0, 0.1)
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def _conditional(call: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As users switch guidance off in a callback: keep the second half of every batch."""
    if call._guidance_scale == 1.0:
        return {}
    call._guidance_scale = 1.0
    return {name: tensor.chunk(2)[1] for name, tensor in tensors.items()}


def test_the_work_that_it_saves(pipe: Any) -> None:
    """A picture takes what so many guided steps take and so many without guidance, the text's keys and values being
    projected once for each kind."""
    pipe.set_attention_backend("plain")  # torch counts no other on a CPU
    given = {"prompt_embeds": EMBEDS[:1], "negative_prompt_embeds": EMBEDS[1:]}
    guided = count_flops(lambda: draw(pipe, steps=5, **given))
    alone = count_flops(lambda: draw(pipe, steps=5, guidance_scale=1.0, **given))
    assert alone < 0.6 * guided
    pipe.enable_guidance_interval(0, 0.5)
    assert count_flops(lambda: draw(pipe, steps=10, **given)) == guided + alone


@pytest.mark.parametrize("name", ["heun", "dpm2", "pndm", "euler"])
def test_steps_are_counted_as_users_count_them(pipe: Any, name: str) -> None:
    """A scheduler of the second order calls the UNet twice in each step but the last."""
    pipe.scheduler = build(name, NOISE)
    steps: list[tuple[int, int]] = []
    pipe.enable_guidance_interval(0.25, 0.5)
    undo = watch(
        pipe, lambda run, given, i, inputs: steps.append((i // run.order, len(inputs["encoder_hidden_states"])))
    )
    draw(pipe, steps=8)
    undo()
    length = 1 + steps[-1][0]
    first, end = round(0.25 * length), round(0.5 * length)
    assert [rows for step, rows in steps] == [2 if first <= step < end else 1 for step, _ in steps]
    assert {rows for _, rows in steps} == {1, 2}


def test_callbacks_are_followed(pipe: Any) -> None:
    """A changed prompt is conditioned on, in both halves and in one; guidance that is switched off stays off."""
    seen: list[Tensor] = []
    pipe.enable_guidance_interval(0, 0.5)

    def change(call: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": EMBEDS} if i == 6 else {}

    undo = watch(pipe, lambda run, given, i, inputs: seen.append(inputs["encoder_hidden_states"]))
    draw(pipe, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    undo()
    assert all(torch.equal(embeds, EMBEDS[1:]) for embeds in seen[7:])
    assert not torch.equal(seen[6], EMBEDS[1:])
    assert seen[5] is seen[6], "what is computed from it once stays valid"

    names = ["prompt_embeds"]
    off: Any = lambda call, i, t, tensors: _conditional(call, tensors) if i == 1 else {}  # noqa: E731
    assert texts(pipe, callback_on_step_end=off, callback_on_step_end_tensor_inputs=names) == [2, 2] + [1] * 8


def test_interrupted(pipe: Any) -> None:
    pipe.enable_guidance_interval(0, 0.5)

    def stop(call: Any, i: int, t: Tensor, tensors: Any) -> dict[str, Any]:
        call._interrupt = i == 5
        return {}

    assert texts(pipe, callback_on_step_end=stop) == [2, 2, 2, 2, 2, 1]


def test_what_it_refuses(pipe: Any) -> None:
    for wrong in ({"start": 0.5, "stop": 0.5}, {"start": -0.1}, {"stop": 1.1}, {"stop": "half"}, {"start": True}):
        with pytest.raises(ConfigError, match="0 <= start < stop <= 1"):
            pipe.enable("guidance_interval", **wrong)
    pipe.unet = unet(time_cond_proj_dim=8)
    with pytest.raises(BackendUnavailable, match="takes the guidance scale as an input"):
        pipe.enable_guidance_interval()


def test_preparing_runs_ends_with_the_undo_and_holds_no_run(pipe: Any) -> None:
    runs: list[ref[Run]] = []
    undo = pipe._stack.subject.each_run(lambda run: runs.append(ref(run)))
    pipe.enable_guidance_interval(0, 0.5)
    gc.collect()
    gc.disable()
    try:
        draw(pipe, steps=2)
        assert runs[0]() is None, "what the run holds ends with the call, not when garbage is collected"
    finally:
        gc.enable()
    undo()
    draw(pipe, steps=2)
    assert len(runs) == 1
