"""The weighted syntax against an implementation of its own, on transformers' text encoders, in float32.

The web UI that the notation comes from cannot be installed here. What it documents is written down for each prompt by
hand (which words are in which chunk, with which weight), and encoded chunk by chunk below. Tolerance 1e-5 of the
largest entry: the order of additions in attention differs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leandiffusion.pipelines import open_pipeline

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LENGTH, TOLERANCE = 24, 1e-5
Chunks = list[list[tuple[str, float]]]

LONG = "the red cat, an red cat the, cat cat cat cat cat cat cat cat cat cat cat cat cat cat, red"
PROMPTS: dict[str, Chunks] = {
    "a (red:1.3) cat": [[("a", 1.0), ("red", 1.3), ("cat", 1.0)]],
    "[the] ((cat))": [[("the", 1 / 1.1), ("cat", 1.1 * 1.1)]],
    "red cat BREAK (the cat:0.6)": [[("red cat", 1.0)], [("the cat", 0.6)]],
    LONG: [
        [("the red cat, an red cat the,", 1.0)],
        [("cat " * 14 + ", red", 1.0)],
    ],
}


def embed(pipe: Any, chunks: Chunks, skip: int | None, which: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (1, n * T, C), and the first chunk's pooled output."""
    tokenizer, encoder = getattr(pipe, f"tokenizer{which}"), getattr(pipe, f"text_encoder{which}")
    is_xl = hasattr(pipe, "text_encoder_2")
    parts, pooled = [], []
    for chunk in chunks:
        ids, weights = [tokenizer.bos_token_id], [1.0]
        for text, weight in chunk:
            found = tokenizer(text, add_special_tokens=False).input_ids
            ids, weights = ids + found, weights + [weight] * len(found)
        ids.append(tokenizer.eos_token_id)
        ids += [tokenizer.pad_token_id] * (LENGTH - len(ids))
        weights += [1.0] * (LENGTH - len(weights))
        with torch.no_grad():
            output = encoder(torch.tensor([ids]), output_hidden_states=True)
        if is_xl:
            z = output.hidden_states[-2 - (skip or 0)]
        else:
            z = output.hidden_states[-1 - (skip or 0)]
            z = getattr(encoder, "text_model", encoder).final_layer_norm(z)
        mean = z.mean()
        z = z * torch.tensor(weights)[None, :, None]
        parts.append(z * (mean / z.mean()))
        pooled.append(output[0])
    return torch.cat(parts, dim=1).detach(), pooled[0]


def reference(pipe: Any, chunks: Chunks, skip: int | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """For all encoders of the pipeline side by side, and the pooled text where there is one."""
    if not hasattr(pipe, "text_encoder_2"):
        return embed(pipe, chunks, skip)[0], None
    (first, _), (second, pooled) = embed(pipe, chunks, skip), embed(pipe, chunks, skip, "_2")
    return torch.cat([first, second], dim=-1), pooled


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def pair(request: pytest.FixtureRequest, tiny: Callable[[str], tuple[Any, Path]]) -> tuple[Any, Any]:
    theirs, folder = tiny(request.param)
    ours = open_pipeline(folder)
    ours.set_progress_bar_config(disable=True)
    ours.prompt_syntax = "weighted"
    return theirs, ours


def close(found: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    assert found is not None
    assert expected is not None
    assert found.shape == expected.shape
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("skip", [None, 1])
def test_embeddings(pair: tuple[Any, Any], prompt: str, skip: int | None) -> None:
    theirs, ours = pair
    expected, pooled = reference(theirs, PROMPTS[prompt], skip)
    found = ours.encode_prompt(prompt, do_classifier_free_guidance=False, clip_skip=skip)
    assert close(found[0], expected)
    assert pooled is None or close(found[2], pooled)


def test_shorter_texts_get_empty_chunks(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    two, one = "red cat BREAK (the cat:0.6)", "a (red:1.3) cat"
    expected = [reference(theirs, PROMPTS[two])[0], reference(theirs, [*PROMPTS[one], []])[0]]
    embeds, negative = ours.encode_prompt([two, one], negative_prompt=one)[:2]
    assert close(embeds, torch.cat(expected))
    assert close(negative, expected[1].repeat(2, 1, 1))
    embeds, negative = ours.encode_prompt(one, negative_prompt=two)[:2]
    assert close(embeds, expected[1])
    assert close(negative, expected[0])


def test_plain_words_are_what_the_plain_syntax_makes_of_them(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    texts = ["a red cat, the cat", "an (red:1.0) cat", ""]
    found = ours.encode_prompt(texts, negative_prompt="the")
    ours.prompt_syntax = "plain"
    expected = ours.encode_prompt([text.replace("(red:1.0)", "red") for text in texts], negative_prompt="the")
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_picture_is_that_of_the_embeddings(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    prompt, negative = LONG, "[the] ((cat))"
    embeds, pooled = reference(theirs, PROMPTS[prompt])
    away, away_pooled = reference(theirs, [*PROMPTS[negative], []])
    encoded = {"prompt_embeds": embeds, "negative_prompt_embeds": away}
    if pooled is not None:
        encoded |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": away_pooled}
    asked: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}
    expected = theirs(**encoded, **asked, generator=torch.Generator().manual_seed(1)).images
    found = ours(prompt, negative_prompt=negative, **asked, generator=torch.Generator().manual_seed(1)).images
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
