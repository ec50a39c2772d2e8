"""Pipelines that read prompts in the weighted syntax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.pipelines.conftest import LENGTH, make_sd1, make_sdxl

from leandiffusion import ConfigError
from leandiffusion.core.errors import NotSupported

Draw = Callable[..., torch.Tensor]


@pytest.fixture(params=[make_sd1, make_sdxl])
def pipe(request: pytest.FixtureRequest) -> Any:
    made = request.param()
    made.prompt_syntax = "weighted"
    return made


def test_words_alone_draw_the_plain_picture(pipe: Any, draw: Draw) -> None:
    found = draw(pipe, prompt="a red cat", negative_prompt="b")
    pipe.prompt_syntax = "plain"
    assert torch.equal(draw(pipe, prompt="a red cat", negative_prompt="b"), found)
    assert not torch.equal(draw(pipe, prompt="a (red:1.3) cat", negative_prompt="b"), found)


def test_each_of_a_batch_is_what_it_is_alone(pipe: Any) -> None:
    texts = ["a (red:1.4) c", "d" * 3 * LENGTH]
    several = pipe.encode_prompt(texts, do_classifier_free_guidance=False)[0]
    alone = [pipe.encode_prompt(text, do_classifier_free_guidance=False)[0] for text in texts]
    assert several.shape[1] == alone[1].shape[1] == 4 * LENGTH
    torch.testing.assert_close(several[:1, :LENGTH], alone[0])
    torch.testing.assert_close(several[1:], alone[1])


def test_nothing_of_a_long_prompt_is_lost(pipe: Any, draw: Draw) -> None:
    start = "a" * 2 * LENGTH
    assert not torch.equal(draw(pipe, prompt=start + " b"), draw(pipe, prompt=start + " c"))


def test_what_is_wrong_shows_before_weights_are_read(folders: Any) -> None:
    from leandiffusion import StableDiffusionPipeline
    from leandiffusion.weights.residence import is_waiting

    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    pipe.prompt_syntax = "weighted"
    for wrong, error in (("[a|b:0.5]", ConfigError), ("a AND b", NotSupported), ("(a:1..2)", ConfigError)):
        for texts in ({"prompt": wrong}, {"prompt": "a", "negative_prompt": wrong}):
            with pytest.raises(error):
                pipe(**texts, num_inference_steps=1)
    assert is_waiting(pipe.text_encoder)
    assert is_waiting(pipe.unet)


def test_texts_beside_embeddings_get_their_length(sd1: Any, draw: Draw) -> None:
    sd1.prompt_syntax = "weighted"
    embeds, negative = sd1.encode_prompt("a BREAK b", negative_prompt="c")
    expected = draw(sd1, prompt="a BREAK b", negative_prompt="c")
    assert torch.equal(draw(sd1, prompt_embeds=embeds, negative_prompt="c"), expected)
    assert torch.equal(draw(sd1, prompt="a BREAK b", negative_prompt_embeds=negative), expected)
    with pytest.raises(ConfigError, match="in chunks of 16"):
        draw(sd1, prompt_embeds=embeds[:, :-1], negative_prompt="c")


def test_an_unknown_syntax(sd1: Any) -> None:
    with pytest.raises(ConfigError, match="use 'plain'"):
        sd1.prompt_syntax = "a1111"
    assert sd1.prompt_syntax == "plain"
