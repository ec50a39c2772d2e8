"""Pipelines that draw prompts which change from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.pipelines.conftest import make_sd1, make_sdxl

from leandiffusion import HeunDiscreteScheduler
from leandiffusion.core.errors import NotSupported
from leandiffusion.modules.text_memory import TextMemory

Draw = Callable[..., torch.Tensor]


@pytest.fixture(params=[make_sd1, make_sdxl])
def pipe(request: pytest.FixtureRequest) -> Any:
    made = request.param()
    made.prompt_syntax = "weighted"
    return made


def test_texts_that_do_not_change_draw_what_they_always_do(pipe: Any, draw: Draw) -> None:
    first, second = (draw(pipe, prompt=f"a {word} cat", num_inference_steps=3) for word in ("red", "blue"))
    for same in ("a [red|red] cat", "a [red:blue:1.0] cat", "a [red::3] cat"):
        assert torch.equal(draw(pipe, prompt=same, num_inference_steps=3), first)
    assert torch.equal(draw(pipe, prompt="a [red:blue:0] cat", num_inference_steps=3), second)
    mixed = draw(pipe, prompt="a [red|blue] cat", num_inference_steps=3)
    assert not torch.equal(mixed, first)
    assert not torch.equal(mixed, second)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_each_step_sees_its_own_text(sd1: Any, draw: Draw, guidance: float) -> None:
    """The same picture, to the last bit, as with the text replaced by hand after each step."""
    sd1.prompt_syntax = "weighted"
    guided = guidance > 1
    halves = [
        sd1.encode_prompt(f"a {word} cat", negative_prompt=negative, do_classifier_free_guidance=guided)
        for word, negative in (("red", "x y"), ("blue", "z"), ("red", "z"))
    ]
    steps = [torch.cat([negative, text]) if guided else text for text, negative in halves]

    def change(pipe: Any, i: int, t: Any, tensors: Any) -> dict[str, torch.Tensor]:
        return {"prompt_embeds": steps[min(i + 1, 2)]}

    how = {"num_inference_steps": 3, "guidance_scale": guidance}
    by_hand = draw(sd1, prompt="a red cat", negative_prompt="x y", callback_on_step_end=change, **how)
    assert torch.equal(draw(sd1, prompt="a [red|blue] cat", negative_prompt="[x y:z:1]", **how), by_hand)


def test_each_text_is_encoded_and_projected_once(sd1: Any, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[TextMemory, int]] = []

    class Counted(TextMemory):
        def of(self, layer: Any) -> Any:
            if id(layer) not in self._made:
                made.append((self, id(layer)))
            return super().of(layer)

    monkeypatch.setattr("leandiffusion.run.text.TextMemory", Counted)
    sd1.prompt_syntax = "weighted"
    encoded: list[int] = []
    sd1.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    draw(sd1, prompt="a cat", negative_prompt="b", num_inference_steps=6)
    layers = len(made)
    assert layers > 0
    assert len(encoded) == 2
    draw(sd1, prompt="a [red|blue] cat", negative_prompt="b", num_inference_steps=6)
    assert len(made) == (1 + 2) * layers
    assert len(encoded) == 2 + 3


def test_a_step_of_two_calls_has_one_text(sd1: Any, draw: Draw) -> None:
    sd1.prompt_syntax = "weighted"
    sd1.scheduler = HeunDiscreteScheduler.from_config(sd1.scheduler.config)
    seen: list[torch.Tensor] = []

    def look(pipe: Any, i: int, t: Any, tensors: Any) -> dict[str, torch.Tensor]:
        seen.append(tensors["prompt_embeds"])
        return {}

    draw(
        sd1, prompt="a [red|blue] cat", num_inference_steps=3, callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )  # fmt: skip
    assert [each is seen[0] for each in seen] == [True, True, False, False, True]


def test_a_callback_that_changes_the_text_has_the_last_word(sd1: Any, draw: Draw) -> None:
    sd1.prompt_syntax = "weighted"
    own = torch.cat(sd1.encode_prompt("my own", negative_prompt="b")[::-1])

    def change(pipe: Any, i: int, t: Any, tensors: Any) -> dict[str, torch.Tensor]:
        return {"prompt_embeds": own} if i == 0 else {}

    how = {"negative_prompt": "b", "num_inference_steps": 3, "guidance_scale": 5.0, "callback_on_step_end": change}
    assert torch.equal(draw(sd1, prompt="a [red|blue] cat", **how), draw(sd1, prompt="a red cat", **how))


def test_one_text_alone_cannot_change(sd1: Any) -> None:
    sd1.prompt_syntax = "weighted"
    with pytest.raises(NotSupported, match="which a call of the pipeline does"):
        sd1.encode_prompt("a [red|blue] cat")
