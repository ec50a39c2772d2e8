"""Memory that runs out in the midst of a planned call: it goes on from where it is, with the next lower plan."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from leandiffusion.core.errors import BudgetError, NonFiniteError
from leandiffusion.pipelines import planning
from leandiffusion.plan.plan import Plan, Settings
from leandiffusion.plan.prediction import STAGES, Prediction, StagePrediction
from leandiffusion.run import fallbacks
from leandiffusion.run.size import CallSize
from leandiffusion.techniques.stack import make

Draw = Callable[..., torch.Tensor]


def settings(*names: str) -> Settings:
    predicted = {stage: StagePrediction(1 << 30, 1.0) for stage in STAGES}
    return Settings(tuple(make(name, {}) for name in names), Prediction(predicted))


def plan(*lower: tuple[str, ...]) -> Plan:
    return Plan(
        model="tiny", device="cpu", dtype="float32", call=CallSize(64, 64), steps=4, allow="exact", budget="1 GiB",
        budget_bytes=1 << 30, settings=settings(), lower=tuple(settings(*names) for names in lower),
    )  # fmt: skip


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("DefaultCPUAllocator: can't allocate memory")


def fails(pipe: Any, network: Any, times: int, after: int = 0) -> list[int]:
    """Have the network run out of memory after so many calls, so many times; what it returns counts them."""
    forward, calls = network.forward, [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return out_of_memory() if after < calls[0] <= after + times else forward(*args, **kwargs)

    network.forward = failing
    return calls


def test_a_step_goes_on_with_the_next_lower_plan(sd1: Any, draw: Draw) -> None:
    plain = draw(sd1)
    sd1.apply(plan(("unet_slicing",), ("unet_slicing", "vae_tiling")))
    calls = fails(sd1, sd1.unet, times=1, after=2)
    steps: list[int] = []
    with pytest.warns(UserWarning, match="memory ran out: going on with unet_slicing") as told:
        found = draw(sd1, callback_on_step_end=lambda pipe, i, t, tensors: steps.append(i) or {})
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    assert steps == [0, 1, 2, 3]  # no step was made twice
    assert calls == [2 + 1 + 2 * 2]  # the last two in halves
    assert len(told) == 1
    assert [entry.name for entry in sd1.techniques] == ["unet_slicing"]
    assert [each.name for each in sd1.plan.lower[0].techniques] == ["unet_slicing", "vae_tiling"]


def test_a_step_for_which_nothing_lower_is_left(sd1: Any, draw: Draw) -> None:
    plain = draw(sd1)
    sd1.apply(plan(("unet_slicing",)))
    fails(sd1, sd1.unet, times=9)
    with pytest.warns(UserWarning, match="going on"), pytest.raises(BudgetError, match="no settings take less"):
        draw(sd1)
    del sd1.unet.forward
    torch.testing.assert_close(draw(sd1), plain, rtol=0, atol=1e-5)  # the pipeline is usable


def test_without_a_plan_memory_errors_pass_through(sd1: Any, draw: Draw) -> None:
    fails(sd1, sd1.unet, times=1)
    with pytest.raises(torch.OutOfMemoryError):
        draw(sd1)


@pytest.mark.parametrize("component", ["text_encoder", "vae"])
def test_the_other_stages_go_on_too(sd1: Any, draw: Draw, component: str) -> None:
    plain = draw(sd1)
    sd1.apply(plan(("vae_slicing",), ("vae_slicing", "vae_tiling")))
    network = sd1.vae.decoder if component == "vae" else sd1.text_encoder
    fails(sd1, network, times=1)
    with pytest.warns(UserWarning, match=r"going on with vae_slicing|goes on in strips"):
        found = draw(sd1)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "times", "tried_again"),
    [
        ("unet.mid_block", 1, {"plan"}),
        ("unet.mid_block", 2, {"plan"}),
        ("vae.decoder.mid_block", 1, {"strips"}),
        ("vae.decoder.mid_block", 2, {"strips", "plan"}),
        ("text_encoder.text_model.encoder.layers.1", 1, {"plan"}),
    ],
)
def test_what_is_tried_again_finds_the_failed_attempt_s_tensors_freed(
    sd1: Any, draw: Draw, monkeypatch: pytest.MonkeyPatch, layer: str, times: int, tried_again: set[str]
) -> None:
    """An exception that is held holds its frames, and these the tensors of each network on the way."""
    sd1.apply(plan(("vae_slicing",), ("vae_slicing", "vae_tiling")))
    component, _, path = layer.partition(".")
    part = getattr(sd1, component).get_submodule(path)
    forward, given, found = part.forward, [], []

    def failing(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(given) < times:
            given.append(weakref.ref(x))
            out_of_memory()
        return forward(x, *args, **kwargs)

    def releasing(who: str) -> Callable[[], None]:
        return lambda: found.append((who, [each for each in given if each() is not None]))

    part.forward = failing
    monkeypatch.setattr(planning, "release", releasing("plan"))
    monkeypatch.setattr(fallbacks, "release", releasing("strips"))
    with pytest.warns(UserWarning, match=r"going on with|goes on in strips"):
        draw(sd1)
    assert len(given) == times
    assert {who for who, _ in found} == tried_again
    assert not [alive for _, alive in found if alive]


@pytest.mark.parametrize("planned", [False, True])
def test_latents_outlive_a_decode_that_fails(sd1: Any, draw: Draw, planned: bool) -> None:
    plain = draw(sd1)
    if planned:
        sd1.apply(plan())
    fails(sd1, sd1.vae, times=0)
    decode = sd1.vae.decode
    sd1.vae.decode = out_of_memory
    with pytest.warns(UserWarning, match="strips"), pytest.raises((BudgetError, RuntimeError)) as caught:
        draw(sd1)
    assert any("pipe.decode(error.latents)" in note for note in caught.value.__notes__)
    sd1.vae.decode = decode
    torch.testing.assert_close(sd1.decode(caught.value.latents, "pt"), plain, rtol=0, atol=1e-5)  # type: ignore[attr-defined]


def test_latents_outlive_a_damaged_vae(sd1: Any, draw: Draw) -> None:
    plain, bias = draw(sd1), sd1.vae.decoder.conv_out.bias
    kept = bias.detach().clone()
    bias.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError) as caught:
        draw(sd1)
    bias.data.copy_(kept)
    assert torch.equal(sd1.decode(caught.value.latents, "pt"), plain)  # type: ignore[attr-defined]
