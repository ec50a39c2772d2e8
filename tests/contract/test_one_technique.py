"""What holds for every registered technique on its own. A new one joins by being registered."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from tests.contract.common import (
    ON_A_PICTURE,
    SETTINGS,
    UNUSABLE,
    USABLE,
    Draw,
    enable,
    noise,
    quietly,
    redraw,
    state,
)

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.techniques import techniques
from leandiffusion.techniques.base import Exactness

# Pixels lie in [0, 1]. 'exact' allows what another order of float32 sums does to them over two steps and a decode;
# bfloat16 keeps 8 bits, so a picture drawn in it has 40 dB of noise or less. 'approximate' is for 50 steps that are
# alike; of two, one of which computes something else, only nonsense can be told: other prompts are at 7 to 10.
EXACT = 2e-4
NEAREST_DB = {Exactness.ROUNDING: 20.0, Exactness.APPROXIMATE: 10.0}

each = pytest.mark.parametrize("name", USABLE)
everything = pytest.mark.parametrize("name", techniques.names())


def check_parity(name: str, picture: np.ndarray, plain: np.ndarray) -> None:
    """The picture is as near the plain one as the technique's exactness promises."""
    difference = np.abs(picture.astype(np.float64) - plain)
    exactness = techniques.get(name).exactness
    if exactness == Exactness.EXACT:
        assert difference.max() <= EXACT
    else:
        assert np.mean(difference**2) <= 10 ** (-NEAREST_DB[exactness] / 10)


@everything
def test_its_declaration_is_complete(name: str, pipe: Any) -> None:
    cls = techniques.get(name)
    assert cls.name == name
    assert cls.title
    assert all(vars(cls.price).values())
    assert all(other in techniques for other in cls.refuses)
    own = [call.split("(")[0] for call in cls.calls if "." not in call.split("(")[0]]
    assert own
    assert all(hasattr(pipe, call) for call in own)
    assert str(cls(**SETTINGS.get(name, {}))).startswith(name)


@each
def test_parity_and_exact_undo(name: str, pipe: Any, draw: Draw, plain: np.ndarray) -> None:
    before = state(pipe)
    enable(pipe, name)
    assert [entry.name for entry in pipe.techniques] == [name]
    first, second, third = draw(pipe), draw(pipe), draw(pipe)
    check_parity(name, first, plain)
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)
    pipe.disable(name)
    assert pipe.techniques == ()
    assert state(pipe) == before
    assert np.array_equal(draw(pipe), plain)


@each
@pytest.mark.parametrize("task", ON_A_PICTURE)
@pytest.mark.usefixtures("same_noise")
def test_parity_and_exact_undo_on_a_picture(name: str, task: str, pipe: Any, redrawn: dict[str, np.ndarray]) -> None:
    auto, given = ON_A_PICTURE[task]
    on_picture = auto.from_pipe(pipe)
    on_picture.set_progress_bar_config(disable=True)
    before = state(on_picture)
    enable(on_picture, name)
    first, second = redraw(on_picture, given), redraw(on_picture, given)
    check_parity(name, first, redrawn[task])
    assert np.array_equal(first, second)
    on_picture.disable(name)
    assert state(on_picture) == before
    assert np.array_equal(redraw(on_picture, given), redrawn[task])


@each
def test_switched_on_twice_is_on_once(name: str, pipe: Any, draw: Draw, plain: np.ndarray) -> None:
    before = state(pipe)
    enable(pipe, name)
    enable(pipe, name)
    assert [entry.name for entry in pipe.techniques] == [name]
    check_parity(name, draw(pipe), plain)
    pipe.disable(name)
    pipe.disable(name)
    assert state(pipe) == before


@each
@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": ["a red circle", "a blue square", "a green star"]},
        {"height": 72, "width": 88},
        {"guidance_scale": 1.0},
        {"num_images_per_prompt": 2},
    ],
    ids=["batch of 3", "odd size", "no guidance", "two images"],
)
def test_other_shapes(name: str, arguments: dict[str, Any], pipe: Any, draw: Draw) -> None:
    expected = draw(pipe, **arguments)
    enable(pipe, name)
    check_parity(name, draw(pipe, **arguments), expected)


@each
def test_after_to(name: str, pipe: Any, draw: Draw) -> None:
    pipe.to("cpu", torch.float64)
    expected = draw(pipe)
    enable(pipe, name)
    check_parity(name, draw(pipe), expected)


@each
@pytest.mark.filterwarnings("ignore:half_precision.* stays on")
def test_to_while_it_is_on(name: str, pipe: Any, draw: Draw) -> None:
    expected = draw(StableDiffusionPipeline.from_pretrained("demo").to(torch.float64))
    enable(pipe, name)
    pipe.to(torch.float64)
    pipe.to("cpu")
    assert [entry.name for entry in pipe.techniques] == [name]
    pipe.disable(name)
    assert pipe.dtype == torch.float64
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)  # weights were float32, or never left that


@each
@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_failure_in_mid_forward(
    name: str, failure: BaseException, pipe: Any, draw: Draw, plain: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(pipe)
    enable(pipe, name)
    expected = draw(pipe)
    seen = 0

    def fail_later(q: torch.Tensor, *others: Any, **options: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 9:  # past a few layers
            raise failure
        return inner(q, *others, **options)

    inner = torch.nn.functional.layer_norm
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "layer_norm", fail_later)
        if name == "traced_unet":  # a recorded graph runs no Python: fail between two of its steps
            patch.setattr(type(pipe.scheduler), "step", fail_later)
            seen = 8
        with pytest.raises(type(failure)):
            draw(pipe)
    assert np.array_equal(draw(pipe), expected)
    pipe.disable(name)
    assert state(pipe) == before
    assert np.array_equal(draw(pipe), plain)


@each
def test_two_threads(name: str, pipe: Any, draw: Draw) -> None:
    enable(pipe, name)
    prompts = ["a red circle", "a blue square"]
    expected = [draw(pipe, prompt) for prompt in prompts]
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "height": 64, "width": 64}
        results[i] = pipe(prompts[i], latents=noise(prompts[i], options), **options).images

    with quietly():
        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in range(2):
        np.testing.assert_allclose(results[i], expected[i], atol=EXACT)  # two threads may split sums differently


@each
def test_it_does_not_change_during_a_call(name: str, pipe: Any, draw: Draw, plain: np.ndarray) -> None:
    def meddle(call: Any, *_: Any) -> dict[str, Any]:
        call.enable(name, **SETTINGS.get(name, {}))
        return {}

    with pytest.raises(ConfigError, match="while a picture is being drawn"):
        draw(pipe, callback_on_step_end=meddle)
    assert pipe.techniques == ()
    assert np.array_equal(draw(pipe), plain)


@everything
def test_an_unfit_pipeline_is_left_as_it_was(name: str, pipe: Any) -> None:
    class Foreign:
        """Neither a network of this library nor a torch module."""

    for component in ("unet", "vae", "text_encoder"):
        setattr(pipe, component, Foreign())
    technique = techniques.get(name)(**SETTINGS.get(name, {}))
    reasons = pipe.why_not(technique)
    if not reasons:
        assert technique.phase.name == "PRECISION"  # a setting of torch's, which concerns no network
        return
    assert all(isinstance(reason, str) and " " in reason for reason in reasons)
    with pytest.raises(BackendUnavailable, match=name) if not technique.optional else pytest.warns(match=name):
        pipe.enable(technique)
    assert pipe.techniques == ()


@pytest.mark.parametrize("name", list(UNUSABLE))
def test_what_this_machine_lacks_is_said(name: str, pipe: Any, draw: Draw, plain: np.ndarray) -> None:
    before = state(pipe)
    optional = techniques.get(name).optional
    with pytest.warns(match=name) if optional else pytest.raises(BackendUnavailable, match=name):
        pipe.enable(name, **SETTINGS.get(name, {}))
    assert pipe.techniques == ()
    assert state(pipe) == before
    assert np.array_equal(draw(pipe), plain)


@each
def test_a_replaced_component_is_met(name: str, pipe: Any, draw: Draw, plain: np.ndarray) -> None:
    enable(pipe, name)
    fresh = StableDiffusionPipeline.from_pretrained("demo")
    pipe.unet, pipe.vae, pipe.text_encoder = fresh.unet, fresh.vae, fresh.text_encoder
    check_parity(name, draw(pipe), plain)
    pipe.disable(name)
    assert pipe.unet is fresh.unet
    assert np.array_equal(draw(pipe), plain)
